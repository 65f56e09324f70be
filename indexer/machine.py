"""How much memory this machine has free: what the system says, and what a container allows."""

from __future__ import annotations

import os
from pathlib import Path

_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
_GIVEN_BACK = ("inactive_file", "active_file")
"""What counts as used and is given back when needed: copies of files."""


def free_memory() -> int:
    """Bytes that can be used without swapping; 4 GB where the system does not say."""
    found = [number for number in (_system(), *(_group(*files) for files in _GROUPS)) if number is not None]
    return min(found, default=4 * 10**9)


def _system() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _group(limit: str, used: str, details: str) -> int | None:
    try:
        free = int(Path(limit).read_text("ascii")) - int(Path(used).read_text("ascii"))
        counts = dict(line.split() for line in Path(details).read_text("ascii").splitlines())
        return max(0, free + sum(int(counts.get(name, 0)) for name in _GIVEN_BACK))
    except (OSError, ValueError):  # no such group, or "max"
        return None
