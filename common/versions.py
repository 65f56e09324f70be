"""Versions of installed packages."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "llm2clip-retrieval"
"""What this package is called where it is installed from."""


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
