"""This installation: default folders of models and indexes, versions of packages, free memory of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_data_path

DISTRIBUTION = "llm2clip-retrieval"
"""What this package is called where it is installed from."""
_FALLBACK = 4 * 10**9
"""Bytes assumed where nothing is reported."""
_RECLAIMABLE = ("inactive_file", "active_file")
"""Page cache: counted as used by a cgroup, released on demand."""


class NoHomeError(OSError):
    """The user has no home folder, as services and containers may."""


def data_home() -> Path:
    """The folder of everything made without a path given: ``$LLM2CLIP_HOME``, else the platform's data folder.

    Raises:
        NoHomeError: The user has no home folder, and the variable is not set.
    """
    if told := os.environ.get("LLM2CLIP_HOME"):
        return Path(os.path.expanduser(told)).absolute()
    try:
        home = user_data_path("llm2clip", appauthor=False)
    except RuntimeError:  # old releases of platformdirs return the ~ instead
        home = Path("~")
    if home.parts[0].startswith("~"):
        raise NoHomeError(
            "this user has no home folder: set HOME or LLM2CLIP_HOME to a folder, or name every path"
        )
    return home


def models_home() -> Path:
    """The folder for models put there by hand: ``models`` in :func:`data_home`."""
    return data_home() / "models"


def package_version(name: str = DISTRIBUTION) -> str | None:
    """Version of an installed package, without importing it; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed."""
    found = {name: package_version(name) for name in names}
    return {"python": platform.python_version()} | {name: each for name, each in found.items() if each}


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
