"""The files of an index folder, its lock, and builds that were not finished.

    manifest.json                  names every file below; replaced atomically by each commit
    items-00001.db                 one SQLite row per image and change of it
    vectors-00001-00000.npy        float16 rows; the row number is the id
    candidates-00001.faiss         the ANN index, derived from the vectors
    lock, writer                   held by the writer

Names carry the generation that wrote them. Vectors that the manifest does not name belong to a transaction that was not
committed: the next one reuses them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from llm2clip.common.files import counted, open_regular, regular_size
from llm2clip.indexer.core.errors import IndexConflictError, IndexDamagedError, IndexerError, IndexWriteError
from llm2clip.indexer.core.index_paths import generation_of
from llm2clip.indexer.records.files import printable
from llm2clip.indexer.storage.items_file import count_all, query, settle, unfinished_files
from llm2clip.indexer.storage.lock import LOCK, OWNER
from llm2clip.indexer.storage.manifest import (
    FORMAT,
    MANIFEST,
    MAX_BYTES,
    Manifest,
    committed_generation,
    invalid_encoder,
    invalid_sources,
    read_manifest,
)

_DRAFTS = (f"{MANIFEST}.tmp",)
_LITTER = ("Thumbs.db", "desktop.ini")  # of file managers


def items_files(folder: Path) -> list[str]:
    """Names of the items files in a folder, the newest last; one that no manifest names is of an unfinished build."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name.endswith(".db") and generation_of(name) is not None)


def next_generation(folder: Path) -> int:
    """A number larger than that of the manifest and of any file in the folder."""
    found = (generation_of(name) for name in os.listdir(folder))
    return 1 + max([committed_generation(folder), *(number for number in found if number is not None)])


def _builds(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Items files, the newest first, with what they say of the build that began them."""
    for name in reversed(items_files(folder)):
        # Killed before it had written anything, or no build of ours.
        with suppress(IndexerError, LookupError, ValueError, TypeError, AttributeError, RecursionError):
            meta = dict(query(folder / name, "SELECT key, value FROM meta LIMIT 100"))
            found = {key: json.loads(meta[key]) for key in ("sources", "encoder", "encoder_source", "anew")}
            if any(invalid_sources(found["sources"])) or any(invalid_encoder(found["encoder"])):
                continue
            yield (
                name,
                {**found, "encoder_source": str(found["encoder_source"]), "corpus": found["sources"][0]},
            )


def settle_items(folder: Path) -> None:
    """Roll back what a writer left that was killed while it committed, under the lock of the index."""
    for name in items_files(folder):
        with suppress(IndexerError):  # whoever needs it says what is wrong with it
            settle(folder / name)


def describe_unfinished(folder: Path) -> str | None:
    """One sentence about an unfinished build and how to go on with it; None if there is none."""
    for name, begun in _builds(folder):
        return (
            f"the index at {folder} is unfinished: {counted(count_all(folder / name), 'image')} so far. "
            f"Continue with: llm2clip-index build {quote(begun['corpus']['spec'])} --index {quote(str(folder))} "
            f"--encoder {quote(begun['encoder_source'])}"
        )
    unknown = f"the index at {folder} is unfinished. Run the command that began it again"
    return unknown if items_files(folder) else None


def clean(folder: Path, *, needed: AbstractSet[str]) -> None:
    """Delete the files of an index but those needed, which ``committed_files`` tells."""
    for name in os.listdir(folder):
        if name not in needed and (generation_of(name) is not None or name in _DRAFTS):
            with suppress(OSError):  # on Windows a reader may hold it open: the next commit tries again
                os.unlink(folder / name)


def committed_files(folder: Path) -> frozenset[str]:
    """Names of the files that the manifest and the unfinished vectors of its items need; empty without a manifest."""
    try:
        manifest = read_manifest(folder)
    except IndexerError:
        if (folder / MANIFEST).exists():  # damaged, or of another release: keep everything
            return frozenset(os.listdir(folder))
        return frozenset()
    files = {MANIFEST, manifest.items_file, *manifest.files}
    with suppress(IndexDamagedError):  # nothing can be reused from damaged items
        files |= unfinished_files(folder / manifest.items_file)
    return frozenset(files)


def unfinished_builds(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Items files of builds that were not committed, the newest first, with their ``corpus``, ``encoder``, ``anew``."""
    committed = committed_files(folder)
    return {name: begun for name, begun in _builds(folder) if name not in committed}


def check_files(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest, if its files have the sizes that were committed; without its ANN index if only that has not."""
    for name, record in manifest.files.items():
        try:
            size = regular_size(folder / name)
            problem = None if size == record.bytes else f"has {size:,} bytes, expected {record.bytes:,}"
        except OSError:
            problem = "is missing"
        if problem is None:
            continue
        if manifest.ann is None or name != manifest.ann.file:
            raise IndexDamagedError(f"{name} {problem}")
        files = {each: kept for each, kept in manifest.files.items() if each != name}
        manifest = replace(manifest, ann=None, files=files)
    return manifest


def recorded_encoder(folder: Path) -> str | None:
    """What to give ``load_encoder`` for the index in a folder, finished or not; None if there is none."""
    with suppress(IndexerError):
        return read_manifest(folder).encoder_source
    return next((str(begun["encoder_source"]) for _, begun in _builds(folder)), None)


def create_or_check_folder(folder: Path) -> bool:
    """Create a folder, or refuse one that holds anything but an index. Returns whether it was created."""
    if printable(str(folder)) != str(folder):
        raise IndexConflictError(
            f"{printable(str(folder))} is not a valid name for an index: it is not UTF-8. Choose another with --index"
        )
    try:
        os.makedirs(folder)
        return True
    except FileExistsError:
        if not folder.is_dir():
            raise IndexConflictError(f"{folder} is a file: expected a folder for the index") from None
    except OSError as error:
        raise IndexWriteError(
            f"cannot create the folder {folder}: {error.strerror or error}. Choose another folder with --index"
        ) from error
    if is_manifest(folder / MANIFEST):
        return False
    names = {name for name in os.listdir(folder) if not name.startswith(".")}
    ours = {name for name in names if generation_of(name) is not None}
    if foreign := sorted(names - ours - {LOCK, OWNER, *_DRAFTS, *_LITTER, *([MANIFEST] if ours else [])}):
        raise IndexConflictError(
            f"{folder} holds other files ({foreign[0]}, ...): expected an index, an empty folder or none. "
            "Choose another folder with --index"
        )
    return False


def is_manifest(manifest: Path) -> bool:
    """Whether a file is the manifest of an index, damaged or not, and not of something else."""
    try:
        with open_regular(manifest) as file:
            return f'"{FORMAT}"'.encode() in file.read(MAX_BYTES)
    except OSError:
        return False
