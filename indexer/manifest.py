"""``manifest.json``: what an index is. Replacing this one file, atomically, is what commits a change.

Every other file of an index is written once, under a name that no earlier generation used, and never changed
after the manifest names it. A reader therefore needs no lock: it sees the files of one generation, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llm2clip.indexer.errors import IndexDamagedError, IndexNotFoundError, IndexVersionError

FORMAT = "llm2clip-index"
FORMAT_VERSION = 2
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
class Manifest:
    """What an index says about itself. Field by field the content of ``manifest.json``."""

    index_id: str
    """Random name of this generation, also kept in the items file: a file of another index is noticed."""
    generation: int
    """Counts commits from 1; names of files carry the generation that wrote them."""
    created: str
    """When it was committed: ISO 8601, UTC."""
    written_by: str
    """Name and version of the software."""
    corpus: Mapping[str, str]
    """What was indexed: ``kind``, ``spec`` as it was given, and where needed ``root``, below which all keys lie."""
    encoder: Mapping[str, str | int]
    """Identity of the encoder: ``name``, ``dim``, ``weights_sha256``, ``settings_sha256``, ``preprocessing``, ..."""
    encoder_source: str
    """What ``load_encoder`` loads it from: a built-in name, or a folder."""
    items: int
    """How many pictures can be found."""
    tombstones: int
    """How many rows of the segments are no longer to be found."""
    bad: int
    """How many pictures could not be read."""
    items_file: str
    """SQLite file with one row per picture."""
    segments: tuple[Segment, ...]
    """The vectors, in order of id."""
    faiss_file: str
    """FAISS index derived from the segments."""
    faiss_kind: str
    """What kind of FAISS index it is."""
    files: Mapping[str, FileRecord]
    """Size and checksum of every other file of the index."""

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self.encoder["dim"])


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
        raise IndexVersionError(
            f"{folder} has index format version {content.get('format_version')!r}, this release reads version "
            f"{FORMAT_VERSION}: use the release that wrote it ({content.get('written_by', 'unknown')}), "
            "or build the index anew with --overwrite"
        )
    if content.get("checksum") != _checksum(content):
        raise IndexDamagedError(f"{path} was altered: its checksum does not fit its content. {_REBUILD}")
    return _parsed(path, content)


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
        content["segments"] = tuple(Segment(**segment) for segment in content["segments"])
        content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
        return Manifest(**{name: content[name] for name in names})
    except (TypeError, AttributeError) as error:
        raise IndexDamagedError(f"{path} has an entry of the wrong form: {error}. {_REBUILD}") from error
