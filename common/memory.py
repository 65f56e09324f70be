"""How much memory this machine has free: what the system reports and what a container's cgroup allows."""

from __future__ import annotations

import os
from pathlib import Path

_FALLBACK = 4 * 10**9
"""Bytes assumed where nothing is reported."""
_RECLAIMABLE = ("inactive_file", "active_file")
"""Page cache: counted as used by a cgroup, released on demand."""


def free_memory(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be used without swapping; 4 GB where the system reports nothing."""
    reported = (_system_free(), _cgroup_free(cgroup_root), _cgroup_v1_free(cgroup_root / "memory"))
    return min((free for free in reported if free is not None), default=_FALLBACK)


def _system_free() -> int | None:
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


def _cgroup_free(root: Path) -> int | None:
    return _limit_left(root / "memory.max", root / "memory.current", root / "memory.stat")


def _cgroup_v1_free(root: Path) -> int | None:
    return _limit_left(
        root / "memory.limit_in_bytes", root / "memory.usage_in_bytes", root / "memory.stat", prefix="total_"
    )


def _limit_left(limit: Path, usage: Path, details: Path, *, prefix: str = "") -> int | None:
    try:
        left = int(limit.read_text("ascii")) - int(usage.read_text("ascii"))
        counts = dict(line.split() for line in details.read_text("ascii").splitlines())
        return max(0, left + sum(int(counts.get(prefix + name, 0)) for name in _RECLAIMABLE))
    except (OSError, ValueError):  # no such group, or "max"
        return None
