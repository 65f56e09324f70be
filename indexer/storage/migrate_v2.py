"""Indexes of format version 2: their vectors stay as they are, their items are written anew. No image is read."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.storage.index_folder import items_name, next_generation, remove_generations
from llm2clip.indexer.storage.items_reader import ErrorRow, ItemRow, sqlite
from llm2clip.indexer.storage.items_writer import MODULUS, ItemsWriter
from llm2clip.indexer.storage.manifest import (
    DEFAULT_PLAN,
    MANIFEST,
    Ann,
    FileRecord,
    Manifest,
    Segment,
    read_older,
    write_manifest,
)

_ITEM = "id, key, path, offset, size, mtime_ns, sidecars, hash, width, height, caption, metadata"
_AT_ONCE = 10_000


def bring_up_to_date(folder: Path) -> bool:
    """Bring an index of format version 2 to this one, under its lock; returns whether it was one.

    Raises:
        IndexDamagedError: it is damaged.
        IndexWriteError: the disk is full, or worse; the index stays as it was.
    """
    older = read_older(folder)
    if older is None:
        return False
    generation = next_generation(folder)
    path = folder / items_name(generation)
    meta = {"index_id": older["index_id"], "anew": "false", "generation": str(generation)}
    items = ItemsWriter(path, generation=generation, meta=meta)
    try:
        count, checksum = _copy(folder / older["items_file"], items, older["index_id"])
        bad = items.count_bad()
        items.commit()
    finally:
        items.close()
    manifest = _manifest(older, generation, path)
    if count != manifest.rows:
        raise IndexDamagedError(
            f"{folder / older['items_file']} has {count:,} items, expected {manifest.rows:,}. "
            "Build the index anew with --overwrite"
        )
    write_manifest(folder, replace(manifest, bad=bad, items_checksum=f"{checksum:016x}"))
    remove_generations(folder, keep=frozenset([MANIFEST, path.name, *manifest.files]))
    return True


def _copy(old: Path, items: ItemsWriter, index_id: str) -> tuple[int, int]:
    count = checksum = 0
    if not old.is_file():
        raise IndexDamagedError(f"{old} is missing. Build the index anew with --overwrite")
    with sqlite(old):
        db = sqlite3.connect(f"{old.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            meta = dict(db.execute("SELECT key, value FROM meta"))
            if meta.get("index_id") != index_id:
                raise IndexDamagedError(
                    f"{old} belongs to another index. Build the index anew with --overwrite"
                )
            found = db.execute(f"SELECT {_ITEM} FROM items ORDER BY id")
            while rows := found.fetchmany(_AT_ONCE):
                checksum += items.append([_item(row) for row in rows], ())
                count += len(rows)
            errors = db.execute("SELECT key, stage, reason, size, mtime_ns FROM errors").fetchall()
        finally:
            db.close()
    items.append((), [ErrorRow(0, *row) for row in errors])
    return count, checksum % MODULUS


def _item(row: tuple[Any, ...]) -> ItemRow:
    id, key, path, offset, size, mtime_ns, sidecars, hash, width, height, caption, metadata = row
    record = Record(key=key, uri="", file=Path(), path=path, offset=offset, size=size)
    return ItemRow(
        id=id,
        source=0,
        key=key,
        path=path,
        locator=record.locator,
        size=size,
        mtime_ns=mtime_ns,
        sidecars=sidecars,
        hash=hash,
        width=width,
        height=height,
        caption=caption,
        metadata=metadata,
    )


def _manifest(older: Mapping[str, Any], generation: int, items: Path) -> Manifest:
    segments = tuple(Segment(**segment) for segment in older["segments"])
    rows = sum(segment.rows for segment in segments)
    names = [*(segment.file for segment in segments), older["faiss_file"]]
    return Manifest(
        index_id=older["index_id"],
        generation=generation,
        created=older["created"],
        written_by=older["written_by"],
        sources=(older["corpus"],),
        encoder=older["encoder"],
        encoder_source=older["encoder_source"],
        rows=rows,
        items=rows,
        bad=0,
        items_file=items.name,
        items_bytes=os.path.getsize(items),
        items_checksum="",
        segments=segments,
        ann=Ann(file=older["faiss_file"], rows=rows, plan=json.loads(json.dumps(dict(DEFAULT_PLAN)))),
        files={name: FileRecord(**older["files"][name]) for name in names},
    )
