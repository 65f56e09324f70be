"""Vectors that an earlier build made already: of the committed index, or of a build that never finished.

A picture keeps its vector while its name, size and time of change stay the same and the encoder is the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from llm2clip.indexer.errors import IndexDamagedError
from llm2clip.indexer.items import ErrorRow, ItemRow, ItemsReader
from llm2clip.indexer.manifest import Manifest
from llm2clip.indexer.records import Record
from llm2clip.indexer.segments import Rows, Vectors, map_segment, map_unfinished
from llm2clip.indexer.store import items_name


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A picture that need not be embedded again."""

    vector: Rows
    """Shape: (dim,), float16."""
    hash: bytes
    """Hash of its content."""
    width: int
    """As shown, in pixels."""
    height: int
    """As shown, in pixels."""


class Earlier:
    """The pictures of one earlier build.

    Args:
        items: its items.
        vectors: its vectors by id.
    """

    def __init__(self, items: ItemsReader, vectors: Vectors) -> None:
        self.items, self._vectors = items, vectors

    @classmethod
    def committed(cls, folder: Path, manifest: Manifest) -> Self:
        """The committed index in ``folder``.

        Raises:
            IndexDamagedError: a file is missing or is not the one that was committed.
        """
        items = ItemsReader(folder / manifest.items_file, committed=True)
        if items.meta.get("index_id") != manifest.index_id:
            raise IndexDamagedError(f"{items.path} belongs to another index")
        mapped = [map_segment(folder / s.file, rows=s.rows, dim=manifest.dim) for s in manifest.segments]
        return cls(items, Vectors(mapped, dim=manifest.dim))

    @classmethod
    def unfinished(cls, folder: Path, *, generation: int, dim: int) -> Self:
        """What a build that never finished left in ``folder``.

        Raises:
            IndexDamagedError: its items cannot be read.
        """
        items = ItemsReader(folder / items_name(generation), writable=True)
        mapped = map_unfinished(folder, generation=generation, rows=items.count(), dim=dim)
        return cls(items, Vectors(mapped, dim=dim))

    def kept(self, records: Sequence[Record]) -> list[Kept | ErrorRow | None]:
        """For each record its vector, or why it could not be decoded; None where it has to be looked at."""
        known = self.items.find([record.key for record in records])
        found: list[Kept | ErrorRow | None] = []
        for record in records:
            item, error = known.items.get(record.key), known.errors.get(record.key)
            if item is not None and _same(record, item) and item.id < len(self._vectors):
                vector = self._vectors.take(np.array([item.id]))[0]
                found.append(Kept(vector=vector, hash=item.hash, width=item.width, height=item.height))
            else:
                found.append(error if error is not None and _same_error(record, error) else None)
        return found

    def unchanged(self, records: Sequence[Record]) -> int:
        """How many of the records are in this build just as they are now, captions and errors included."""
        known = self.items.find([record.key for record in records])
        count = 0
        for record in records:
            item, error = known.items.get(record.key), known.errors.get(record.key)
            if record.problem is not None:
                count += error is not None and error.reason == record.problem
            elif item is not None:
                where = (item.path, item.offset, item.sidecars)
                count += _same(record, item) and where == (record.path, record.offset, record.sidecars)
            else:
                count += error is not None and _same_error(record, error)
        return count

    def close(self) -> None:
        """Close the items."""
        self.items.close()


def _same(record: Record, item: ItemRow) -> bool:
    return record.problem is None and (record.size, record.mtime_ns) == (item.size, item.mtime_ns)


def _same_error(record: Record, error: ErrorRow) -> bool:
    # Only what could be read and not decoded stays bad until it changes: a permission may have been given since.
    known = (error.stage, error.size, error.mtime_ns)
    return record.problem is None and known == ("decode", record.size, record.mtime_ns)


def sha256_of(path: Path) -> str:
    """Checksum of a file, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
