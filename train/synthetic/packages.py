"""Fetch the packages nano is made from, by name and version, with npm and apt.

``STYLES`` and ``TEXT_PACKAGES`` are the whole list, with the licence each package states.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from llm2clip.common.files import atomic_folder


class SourceError(ValueError):
    """A package could not be fetched or unpacked; the message says which, why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package of a registry."""

    name: str
    """Name in its registry."""
    version: str
    """Exact version; empty for Debian, whose release decides."""
    client: Literal["npm", "apt"]
    """Command-line client that fetches it."""

    @property
    def folder(self) -> str:
        """Folder name it is unpacked to."""
        return f"{self.name.strip('@').replace('/', '-')}-{self.version or self.client}"


@dataclass(frozen=True, kw_only=True)
class Style:
    """One set of emoji artwork."""

    name: str
    """Short name, as in the metadata of the sample corpus."""
    package: Package
    """Where it comes from."""
    layout: Literal["cbdt", "svg-by-codepoint", "iconify", "openmoji"]
    """How images are found inside the package."""
    licence: str
    """SPDX identifier of the artwork."""
    source: str
    """Who drew it, for the notice."""
    trained: bool = True
    """Whether nano sees it in training; the others only measure."""


_DATA = tomllib.loads(resources.files("llm2clip.train").joinpath("data/packages.toml").read_text("utf-8"))
STYLES = tuple(Style(**entry | {"package": Package(**entry["package"])}) for entry in _DATA["styles"])
TEXT_PACKAGES = tuple(
    Package(name=name, version=version, client="npm") for name, version in _DATA["texts"].items()
)


def style(name: str) -> Style:
    """The style of that name; ``ValueError`` lists the known ones."""
    for candidate in STYLES:
        if candidate.name == name:
            return candidate
    raise ValueError(f"unknown artwork style {name!r}, expected one of {[s.name for s in STYLES]}")


def fetch(package: Package, cache: Path) -> Path:
    """Fetch and unpack a package into a folder of ``cache``, once; returns the folder.

    Raises:
        SourceError: The client is missing or reports a failure.
    """
    target = cache / package.folder
    if target.is_dir():
        return target
    unpack: Callable[[Package, Path], None] = {"npm": _fetch_npm, "apt": _fetch_apt}[package.client]
    with atomic_folder(target) as draft:
        unpack(package, draft)
    return target


def _run(command: list[str], folder: Path, package: Package) -> None:
    if shutil.which(command[0]) is None:
        raise SourceError(
            f"cannot fetch package {package.name!r}: the command {command[0]!r} is not installed. "
            f"Install {package.client}, or run this on a machine that has it."
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = lines[-1] if lines else "no message"
        raise SourceError(f"cannot fetch package {package.name!r} with {command[0]}: {reason}")


def _fetch_npm(package: Package, folder: Path) -> None:
    _run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], folder, package)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()


def _fetch_apt(package: Package, folder: Path) -> None:
    _run(["apt-get", "download", package.name], folder, package)
    (archive,) = folder.glob("*.deb")
    _run(["dpkg-deb", "-x", archive.name, "package"], folder, package)
    archive.unlink()
