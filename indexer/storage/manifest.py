"""``manifest.json``: what an index is. Replacing this one file, atomically, is what commits a change.

Every other file of an index but one is written once, under a name that no earlier generation used, and never changed
after the manifest names it. The one is the items file, whose rows say in which generation they came and went. A reader
therefore needs no lock: it sees one generation, whole. docs/index-format.md describes all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from shlex import quote
from typing import Any

from llm2clip.indexer.core.errors import IndexDamagedError, IndexNotFoundError, IndexVersionError

KIND = "flat-fp16-ip"
"""Exhaustive, float16 storage, inner product: exact, half the size of float32, and faster where memory is the limit."""
DEFAULT_PLAN: Mapping[str, Any] = {"kind": KIND}
"""Exact."""

FORMAT = "llm2clip-index"
FORMAT_VERSION = 3
OLDER_VERSION = 2
"""Can be brought up to date (``migrating.py``)."""
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of the index, as it was committed."""

    bytes: int
    """Its size."""
    sha256: str
    """Checksum of its content, hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A file of vectors: rows of consecutive ids."""

    file: str
    """Name of the ``.npy`` file: (rows, dim), float16."""
    first_id: int
    """Id of its first row."""
    rows: int
    """How many rows it has."""


@dataclass(frozen=True, kw_only=True)
class Ann:
    """The search structure derived from the vectors. It covers the first rows; those after it are scanned exactly."""

    file: str
    """Its file."""
    rows: int
    """How many rows it covers, from id 0."""
    plan: Mapping[str, Any]
    """What it is, as the planner wrote it; has at least ``kind``."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an index says about itself. Field by field the content of ``manifest.json``."""

    index_id: str
    """Random name of the index, also kept in the items file: a file of another index is noticed."""
    generation: int
    """Number of this commit, larger than that of any before it. Items say in which they came and went."""
    created: str
    """When it was committed: ISO 8601, UTC."""
    written_by: str
    """Name and version of the software."""
    sources: tuple[Mapping[str, str], ...]
    """What was indexed, each: ``kind``, ``spec`` as it was given, ``place`` to open it from anywhere, and where needed
    ``root``, below which all its keys lie. Items name theirs by its position."""
    encoder: Mapping[str, str | int]
    """Identity of the encoder: ``name``, ``dim``, ``weights_sha256``, ``settings_sha256``, ``preprocessing``, ..."""
    encoder_source: str
    """What ``load_encoder`` loads it from: a built-in name, or a folder."""
    rows: int
    """How many vectors there are; ids go from 0 to one less."""
    items: int
    """How many images can be found; vectors of no item are tombstones."""
    bad: int
    """How many images could not be read."""
    items_file: str
    """SQLite file with one row per image and change."""
    items_bytes: int
    """Its size when this was committed: it may have grown since, for a change that is not committed yet."""
    items_checksum: str
    """Sum of the checksums of all items of this generation, modulo 2**63, 16 hexadecimal digits."""
    segments: tuple[Segment, ...]
    """The vectors, in order of id."""
    ann: Ann | None
    """The derived search structure; None: every row is scanned."""
    files: Mapping[str, FileRecord]
    """Size and checksum of every other file of the index but the items file, which changes."""
    decoding: Mapping[str, int | float] | None = None
    """How its images are decoded: the fields of ``Decoding``; None: whole, as it was never asked."""

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self.encoder["dim"])

    @property
    def tombstones(self) -> int:
        """How many vectors belong to no image that can be found."""
        return self.rows - self.items

    @property
    def corpus(self) -> Mapping[str, str]:
        """The first of the sources, which the index was built from."""
        return self.sources[0]


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps({k: v for k, v in content.items() if k != "checksum"}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit: write the manifest beside its place, flush it to the disk and put it there in one step.

    Raises:
        OSError: it cannot be written; what was committed before still is.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    content["checksum"] = _checksum(json.loads(json.dumps(content)))
    draft = folder / f"{MANIFEST}.tmp"
    with open(draft, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    # First the names of the files that it names, and that SQLite's journal is gone: with it the items would go back.
    sync_folder(folder)
    os.replace(draft, folder / MANIFEST)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk, where the platform can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the index in ``folder`` and check it against its own checksum.

    Raises:
        IndexNotFoundError: there is none.
        IndexVersionError: another release wrote it.
        IndexDamagedError: it is no manifest, or was altered.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexNotFoundError(
            f"no index at {folder}: make one with  llm2clip-index build FOLDER"
        ) from error
    except ValueError as error:
        raise IndexDamagedError(f"{path} is damaged: it is not JSON ({error}). {_REBUILD}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise IndexDamagedError(
            f'{path} is not the manifest of an index: got no "format": "{FORMAT}". {_REBUILD}'
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise IndexVersionError(_other_version(folder, content))
    if content.get("checksum") != _checksum(content):
        raise IndexDamagedError(f"{path} was altered: its checksum does not fit its content. {_REBUILD}")
    return _parsed(path, content)


def _other_version(folder: Path, content: Mapping[str, Any]) -> str:
    version = content.get("format_version")
    has = f"{folder} has index format version {version!r}, this release reads version {FORMAT_VERSION}: "
    if version == OLDER_VERSION:
        return has + (
            "bring it up to date, without reading an image again, with  "
            f"llm2clip-index compact --index {quote(str(folder))}"
        )
    return has + (
        f"use the release that wrote it ({content.get('written_by', 'unknown')}), "
        "or build the index anew with --overwrite"
    )


def read_older(folder: Path) -> dict[str, Any] | None:
    """The manifest of an index of ``OLDER_VERSION``, checked against its own checksum; None if there is no such one.

    Raises:
        IndexDamagedError: it was altered.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("format_version") != OLDER_VERSION:
        return None
    if content.get("format") != FORMAT or content.get("checksum") != _checksum(content):
        raise IndexDamagedError(f"{folder / MANIFEST} was altered: its checksum does not fit. {_REBUILD}")
    return content


def committed_generation(folder: Path) -> int:
    """The generation that a manifest names, whatever release wrote it; 0 where none can be read."""
    try:
        generation = json.loads((folder / MANIFEST).read_text("utf-8"))["generation"]
    except (OSError, ValueError, LookupError, TypeError):
        return 0
    return generation if isinstance(generation, int) else 0


_REBUILD = "Build the index anew with --overwrite"


def _parsed(path: Path, content: dict[str, Any]) -> Manifest:
    names = {field.name for field in fields(Manifest)}
    if wrong := names ^ (content.keys() - {"format", "format_version", "checksum"}):
        raise IndexDamagedError(
            f"{path} has missing or unknown entries: {', '.join(sorted(wrong))}. {_REBUILD}"
        )
    try:
        content["sources"] = tuple(content["sources"])
        content["segments"] = tuple(Segment(**segment) for segment in content["segments"])
        content["ann"] = Ann(**content["ann"]) if content["ann"] is not None else None
        content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
        return Manifest(**{name: content[name] for name in names})
    except (TypeError, AttributeError) as error:
        raise IndexDamagedError(f"{path} has an entry of the wrong form: {error}. {_REBUILD}") from error


def encoder_mismatch(built: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """What is different between two encoder identities, as the end of a sentence; None if they are the same.

    The name is for people: a folder may be moved and renamed.
    """
    keys = built.keys() | given.keys()
    different = sorted(key for key in keys - {"name"} if built.get(key) != given.get(key))
    if not different:
        return None
    if built.get("name") != given.get("name") or built.get("dim") != given.get("dim"):
        return (
            f"was built with encoder '{built.get('name')}' (dim {built.get('dim')}), "
            f"got '{given.get('name')}' (dim {given.get('dim')})"
        )
    details = "; ".join(
        f"{name} {_short(name, built.get(name))}, got {_short(name, given.get(name))}" for name in different
    )
    return f"was built with another version of encoder '{built.get('name')}' ({details})"


def _short(name: str, value: Any) -> str:  # noqa: ANN401
    return str(value)[:12] if name.endswith("sha256") else str(value)
