"""This installation: where models and indexes are kept by default, and versions of packages."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_data_path

DISTRIBUTION = "llm2clip-retrieval"
"""What this package is called where it is installed from."""


def data_home() -> Path:
    """The folder of everything made without a path given: ``$LLM2CLIP_HOME``, else the platform's data folder."""
    if told := os.environ.get("LLM2CLIP_HOME"):
        return Path(told).expanduser().absolute()
    return user_data_path("llm2clip", appauthor=False)


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
