"""Beginning a change of an index: upon what is there, or upon what a change that never finished left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2clip.indexer.core.errors import IndexDamagedError, IndexerError
from llm2clip.indexer.storage.generation_writer import GenerationWriter, clean
from llm2clip.indexer.storage.index_folder import items_files, lock, next_generation, remove_generations
from llm2clip.indexer.storage.items_reader import query
from llm2clip.indexer.storage.items_writer import ItemsWriter
from llm2clip.indexer.storage.manifest import MANIFEST, Manifest, read_manifest
from llm2clip.indexer.storage.migrate_v2 import bring_up_to_date
from llm2clip.indexer.storage.provenance import BuildInfo, empty_manifest
from llm2clip.indexer.storage.recovery import files_of, prune, stash_uncommitted


@contextmanager
def open_for_write(folder: Path) -> Iterator[Manifest]:
    """Hold the index in ``folder`` to change it: as it was last committed, brought to this format if it is older.

    Raises:
        IndexNotFoundError: there is none.
        IndexConflictError: another process writes.
        IndexDamagedError: the index is damaged.
        IndexWriteError: the folder cannot be written.
    """
    if not (folder / MANIFEST).exists():
        read_manifest(folder)  # which says how to make one
    with lock(folder):
        bring_up_to_date(folder)
        manifest = read_manifest(folder)
        rollback_uncommitted(folder, manifest)
        yield manifest


def begin_write(folder: Path, manifest: Manifest) -> GenerationWriter:
    """Begin a change of the index in ``folder``, under its lock, after ``rollback_uncommitted``.

    Raises:
        IndexWriteError: the disk is full, or worse.
    """
    generation = next_generation(folder)
    items = ItemsWriter(folder / manifest.items_file, generation=generation)
    return GenerationWriter(folder, generation=generation, upon=manifest, items=items)


def rollback_uncommitted(folder: Path, manifest: Manifest) -> None:
    """Take back what a writer that died had written and not committed, under the lock of the index.

    Its vectors are kept for whoever needs them.

    Raises:
        IndexDamagedError: the items are missing, damaged or of another index.
        IndexWriteError: the disk is full, or worse.
    """
    path = folder / manifest.items_file
    meta = _meta(path)
    if meta.get("index_id") != manifest.index_id or int(meta.get("generation", 0)) < manifest.generation:
        raise IndexDamagedError(f"{path} belongs to another index. Run the build command again")
    unfinished = int(meta.get("writing", 0)) > manifest.generation
    if unfinished or files_of(path):
        items = ItemsWriter(path, generation=next_generation(folder))
        try:
            if unfinished:
                stash_uncommitted(items, generation=manifest.generation, rows=manifest.rows)
            prune(items)
        finally:
            items.close()
    clean(folder, manifest)


def begin_build(folder: Path, origin: BuildInfo, *, started: str | None = None) -> GenerationWriter:
    """Begin an index, or go on with one that was begun.

    Args:
        folder: where; what else lies there and is not committed is deleted.
        origin: what it is made from and with.
        started: the items file of one that was begun from the same origin.
    """
    keep = _committed_files(folder)
    if started is None:
        remove_generations(folder, keep=keep)
        return GenerationWriter(folder, generation=next_generation(folder), origin=origin)
    generation = next_generation(folder)
    items = ItemsWriter(folder / started, generation=generation)
    try:
        stash_uncommitted(items, generation=0, rows=0)
        index_id = _meta(items.path)["index_id"]
    except BaseException:
        items.close()
        raise
    remove_generations(folder, keep=keep | {started} | files_of(items.path))
    upon = empty_manifest(origin, generation=0, items_file=started, index_id=index_id)
    return GenerationWriter(folder, generation=generation, origin=origin, upon=upon, items=items)


def unfinished_builds(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Items files of builds that were begun and never committed, the newest first, with what they say of themselves."""
    keep = _committed_files(folder)
    found: dict[str, Mapping[str, Any]] = {}
    for name in reversed(items_files(folder)):
        if name in keep:
            continue
        try:
            meta = _meta(folder / name)
            [corpus] = json.loads(meta["sources"])
            found[name] = {
                "corpus": corpus,
                "encoder": json.loads(meta["encoder"]),
                "anew": json.loads(meta["anew"]),
            }
        except (IndexDamagedError, LookupError, ValueError):
            continue  # killed before it had written anything
    return found


def check_files(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest, if all that it names is there; without its search structure, which can be made again, if not.

    Raises:
        IndexDamagedError: vectors are missing, or a file has another size than was committed.
    """
    for name, record in manifest.files.items():
        try:
            size = os.path.getsize(folder / name)
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


def discard(folder: Path, *, keep: frozenset[str] = frozenset()) -> None:
    """Delete what is not the committed index, but for ``keep``."""
    remove_generations(folder, keep=_committed_files(folder) | keep)


def _committed_files(folder: Path) -> frozenset[str]:
    try:
        manifest = read_manifest(folder)
    except IndexerError:
        if (folder / MANIFEST).exists():  # of another release, or damaged: nothing of it is ours to delete
            return frozenset(os.listdir(folder))
        return frozenset()
    own = {MANIFEST, manifest.items_file, *manifest.files}
    with suppress(
        IndexDamagedError
    ):  # of damaged items nothing will be taken over, so nothing more is kept for that
        own |= files_of(folder / manifest.items_file)
    return frozenset(own)


def _meta(path: Path) -> dict[str, str]:
    return dict(query(path, "SELECT key, value FROM meta"))
