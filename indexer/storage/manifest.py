"""``manifest.json``: the description of an index. Replacing this one file atomically commits a change.

Every other file but the items file is written once, under a name that no earlier generation used, and never changes
once the manifest names it. Rows of the items file say in which generation they were added and removed. A reader
therefore needs no lock: it sees one whole generation. docs/index-format.md describes the format.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llm2clip.common.files import (
    DISTRIBUTION,
    create_new,
    file_sha256,
    open_regular,
    package_version,
    regular_size,
    sync_folder,
)
from llm2clip.indexer.core.errors import IndexDamagedError, IndexNotFoundError, IndexVersionError
from llm2clip.indexer.core.index_paths import MAX_GENERATION, is_name

KIND = "flat-fp16-ip"
"""Exhaustive search over float16 vectors by inner product."""
DEFAULT_PLAN: Mapping[str, Any] = {"kind": KIND}
"""Exact search."""

FORMAT = "llm2clip-index"
FORMAT_VERSION = 3
MANIFEST = "manifest.json"
MAX_BYTES = 4 * 2**20
"""Of a manifest: enough for 15,000 segments, four thousand million vectors."""
_REBUILD = "Rebuild the index with --overwrite"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of the index, as it was committed."""

    bytes: int
    sha256: str
    """Checksum of its content, hexadecimal."""

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Size and checksum of a file as it is now."""
        return cls(bytes=regular_size(path), sha256=file_sha256(path, regular=True))


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A file of vectors: rows of consecutive ids."""

    file: str
    """Name of the ``.npy`` file: (rows, dim), float16."""
    first_id: int
    """Id of its first row."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class Ann:
    """The ANN index, derived from the vectors. It covers the first rows; those after it are scanned exactly."""

    file: str
    rows: int
    """Rows that it covers, from id 0."""
    plan: Mapping[str, Any]
    """The plan that the planner wrote; has at least ``kind``."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``manifest.json``, field by field."""

    index_id: str
    """Random name of the index, also kept in the items file: a file of another index is noticed."""
    generation: int
    """Number of this commit, larger than that of any before it."""
    created: str
    """When it was committed: ISO 8601, UTC."""
    written_by: str
    sources: tuple[Mapping[str, str], ...]
    """What was indexed, each: ``kind``, ``spec`` as it was given, ``place`` to open it from anywhere, and where needed
    ``root``, the folder of all its keys. Items name their source by its position."""
    encoder: Mapping[str, str | int]
    """Identity of the encoder: ``name``, ``dim``, ``weights_sha256``, ``settings_sha256``, ``preprocessing``, ..."""
    encoder_source: str
    """What ``load_encoder`` loads it from: a built-in name, or a folder."""
    rows: int = 0
    """Number of vectors; ids go from 0 to one less."""
    items: int = 0
    """Number of images that a search can find; vectors of no item are tombstones."""
    bad: int = 0
    """Number of images that could not be read."""
    items_file: str
    """SQLite file with one row per image and change."""
    items_bytes: int = 0
    """Its size at the commit; it may have grown since, by a change that is not committed yet."""
    items_checksum: str = f"{0:016x}"
    """Sum of the checksums of all items of this generation, modulo 2**63, 16 hexadecimal digits."""
    segments: tuple[Segment, ...] = ()
    """The vectors, in order of id."""
    ann: Ann | None = None
    """The ANN index; None: every row is scanned."""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """Size and checksum of every other file of the index but the items file, which changes."""
    decoding: Mapping[str, int | float] | None = None
    """How JPEGs are decoded. With a ``margin`` above 0 as drafts, see ``ImageEncoder.prepare``; None, or 0: at full
    size. Earlier releases noted here how they chose it."""

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self.encoder["dim"])

    @property
    def drafts(self) -> bool:
        """Whether JPEGs are decoded as drafts."""
        return self.decoding is not None and self.decoding["margin"] > 0

    @property
    def tombstones(self) -> int:
        """Vectors that belong to no item."""
        return self.rows - self.items

    @property
    def corpus(self) -> Mapping[str, str]:
        """The first source, which the index was built from."""
        return self.sources[0]


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps({k: v for k, v in content.items() if k != "checksum"}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit: write the manifest to a temporary file, flush it to the disk and rename it."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    content["checksum"] = _checksum(json.loads(json.dumps(content)))
    draft = folder / f"{MANIFEST}.tmp"
    draft.unlink(missing_ok=True)  # of a process that was killed; or a link
    with create_new(draft) as file:
        text = memoryview((json.dumps(content, indent=2) + "\n").encode())
        while text:  # an unbuffered file may write less, without an error, when the disk is full
            text = text[file.write(text) :]
        os.fsync(file.fileno())
    # First the directory entries of its files, and the removal of SQLite's journal, which would roll the items back.
    sync_folder(folder)
    os.replace(draft, folder / MANIFEST)
    sync_folder(folder)


def _read(folder: Path) -> Any:  # noqa: ANN401
    """The content of the manifest as JSON; raises ``ValueError`` for anything that is not, or is far too large."""
    with open_regular(folder / MANIFEST) as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the index in ``folder`` and verify its version, checksum and entries."""
    path = folder / MANIFEST
    try:
        content = _read(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexNotFoundError(
            f"no index at {folder}: make one with  llm2clip-index build FOLDER"
        ) from error
    except ValueError as error:
        raise IndexDamagedError(f"{path} is damaged: it is not JSON ({error}). {_REBUILD}") from error
    except OSError as error:
        if isinstance(error, PermissionError):
            raise
        raise IndexDamagedError(f"{path} cannot be read: {error.strerror or error}. {_REBUILD}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise IndexDamagedError(
            f'{path} is not the manifest of an index: got no "format": "{FORMAT}". {_REBUILD}'
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise IndexVersionError(
            f"{folder} has index format version {content.get('format_version')!r}, this release reads version "
            f"{FORMAT_VERSION}: use the release that wrote it ({content.get('written_by', 'unknown')}), "
            "or rebuild the index with --overwrite"
        )
    if content.get("checksum") != _checksum(content):
        raise IndexDamagedError(f"{path} was altered: its checksum does not fit its content. {_REBUILD}")
    return _parsed(path, content)


def empty_manifest(
    *, sources: Sequence[Mapping[str, str]], encoder: Mapping[str, str | int], encoder_source: str
) -> Manifest:
    """The manifest of a new index without images; it is not written."""
    return Manifest(
        index_id=uuid.uuid4().hex,
        generation=0,
        created="",
        written_by=software(),
        sources=tuple(dict(source) for source in sources),
        encoder=dict(encoder),
        encoder_source=encoder_source,
        items_file="",
    )


def committed_generation(folder: Path) -> int:
    """The generation in the manifest of any release; 0 where none can be read."""
    try:
        generation = _read(folder)["generation"]
    except (OSError, ValueError, LookupError, TypeError):
        return 0
    return generation if type(generation) is int and 0 < generation <= MAX_GENERATION else 0


def _parsed(path: Path, content: dict[str, Any]) -> Manifest:
    names = {each.name for each in fields(Manifest)}
    if wrong := names ^ (content.keys() - {"format", "format_version", "checksum"}):
        raise IndexDamagedError(
            f"{path} has missing or unknown entries: {', '.join(sorted(wrong))}. {_REBUILD}"
        )
    try:
        if invalid := next(invalid_entries(content), None):
            raise ValueError(invalid)
        content["sources"] = tuple(content["sources"])
        content["segments"] = tuple(Segment(**segment) for segment in content["segments"])
        content["ann"] = Ann(**content["ann"]) if content["ann"] is not None else None
        content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
        return Manifest(**{name: content[name] for name in names})
    except (TypeError, AttributeError, LookupError, ValueError, OverflowError) as error:
        raise IndexDamagedError(f"{path} has an invalid entry: {error}. {_REBUILD}") from error


def software() -> str:
    """Name and version of this package."""
    return f"{DISTRIBUTION} {package_version() or ''}".rstrip()


def encoder_mismatch(built: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The difference between two encoder identities, as the end of a sentence; None if they are the same.

    Names are not compared: a folder may be renamed.
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
        f"{name} {_shortened(name, built.get(name))}, got {_shortened(name, given.get(name))}"
        for name in different
    )
    return f"was built with another version of encoder '{built.get('name')}' ({details})"


def _shortened(name: str, value: Any) -> str:  # noqa: ANN401
    return str(value)[:12] if name.endswith("sha256") else str(value)


_MAX_DIM = 65_536
_SHOWN = 80


def invalid_entries(content: Mapping[str, Any]) -> Iterator[str]:
    """The entries of another type than ours, out of range, or that do not fit one another, as text.

    Raises:
        TypeError, AttributeError, LookupError: entries inside an entry are missing, or it is of another type.
    """
    for name in ("index_id", "created", "written_by", "encoder_source"):
        if not isinstance(content[name], str):
            yield name
    for name in ("generation", "rows", "items", "bad", "items_bytes"):
        if not _is_count(content[name]):
            yield name
    if content["items"] > content["rows"]:
        yield "items"
    if not content["generation"]:
        yield "generation"
    if not re.fullmatch("[0-9a-f]{16}", content["items_checksum"]):
        yield "items_checksum"
    yield from invalid_sources(content["sources"])
    yield from invalid_encoder(content["encoder"])
    decoding = content["decoding"]
    if decoding is not None and not _is_number(decoding["margin"]):
        yield "decoding.margin"
    yield from _files(content)


def invalid_encoder(encoder: Any) -> Iterator[str]:  # noqa: ANN401
    """The invalid entries of the identity of an encoder."""
    if not isinstance(encoder["name"], str) or not all(
        value is None or isinstance(value, str | int | float) for value in encoder.values()
    ):
        yield "encoder"
    if not _is_count(encoder["dim"]) or not 0 < encoder["dim"] <= _MAX_DIM:
        yield "encoder.dim"


def invalid_sources(sources: Any) -> Iterator[str]:  # noqa: ANN401
    """The invalid entries of a list of corpora."""
    if not isinstance(sources, list) or not sources:
        yield "sources"
    for source in sources:
        if not isinstance(source, dict) or not all(isinstance(value, str) for value in source.values()):
            yield "sources: expected texts"
        elif "spec" not in source or (source["kind"] != "sample" and "root" not in source):
            yield "sources: expected kind, spec and root"


def _files(content: Mapping[str, Any]) -> Iterator[str]:
    """Names that are not ours, which may lead out of the folder, and numbers of rows that do not fit."""
    if not is_name(content["items_file"], "items"):
        yield f"items_file {_short(content['items_file'])}"
    rows, names = 0, []
    for segment in content["segments"]:
        names.append(segment["file"])
        if not is_name(segment["file"], "vectors"):
            yield f"segments.file {_short(segment['file'])}"
        if not _is_count(segment["rows"]) or segment["first_id"] != rows:
            yield "segments.rows"
        rows += segment["rows"]
    if rows != content["rows"]:
        yield f"rows: the segments have {rows:,}"
    ann = content["ann"]
    if ann is not None:
        names.append(ann["file"])
        if not is_name(ann["file"], "candidates"):
            yield f"ann.file {_short(ann['file'])}"
        if not _is_count(ann["rows"]) or ann["rows"] > rows:
            yield "ann.rows"
        if not isinstance(ann["plan"]["kind"], str):
            yield "ann.plan.kind"
    if sorted(names) != sorted(content["files"]):
        yield "files: expected those of segments and ann, each once"
    for record in content["files"].values():
        if not _is_count(record["bytes"]) or not isinstance(record["sha256"], str):
            yield "files.bytes"


def _short(value: object) -> str:
    return repr(value)[:_SHOWN]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_GENERATION


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
