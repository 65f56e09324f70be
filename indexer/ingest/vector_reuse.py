"""Reuse of vectors: of the committed index, and of transactions that were not committed.

An image keeps its vector while its key, size and time of change stay the same; an image under another key or of another
time gets the vector of one with the same content.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.ingest.listing import same_error
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.storage.items_reader import IN, ErrorRow, ItemsReader
from llm2clip.indexer.storage.items_writer import UNFINISHED, VECTOR_PLACE, source_text
from llm2clip.indexer.storage.manifest import Manifest
from llm2clip.indexer.storage.outcome import ReusedVector
from llm2clip.indexer.storage.vector_segments import Rows, Vectors, map_appended

_Row = tuple[str, int, int, bytes, int, int, str, int]


class VectorCache(Protocol):
    """Vectors that were made before. Safe to use from several threads."""

    def kept(self, records: Sequence[Record]) -> Sequence[ReusedVector | ErrorRow | None]:
        """For each record its vector, or why it could not be decoded; None if it has to be read."""

    def by_hash(self, hash: bytes, *, key: str) -> ReusedVector | None:
        """The vector of an image of that content, with its id if it is the one of that key; None if there is none."""


class CommittedVectors:
    """The vectors of the committed index, for the records of the source at one position."""

    def __init__(self, items: ItemsReader, vectors: Vectors, *, source: int) -> None:
        self._items, self._vectors, self._source = items, vectors, source

    def kept(self, records: Sequence[Record]) -> list[ReusedVector | ErrorRow | None]:
        """For each record its vector, or why it could not be decoded; None if it has to be read."""
        items, errors = self._items.known([record.key for record in records], source=self._source)
        found: list[ReusedVector | ErrorRow | None] = []
        for record in records:
            item, error = items.get(record.key), errors.get(record.key)
            now = (record.size or 0, record.mtime_ns or 0)
            if item is not None and record.problem is None and now == (item.size, item.mtime_ns):
                found.append(self._reused(item.id, item.hash, item.width, item.height, own=True))
            else:
                found.append(error if error is not None and same_error(record, error) else None)
        return found

    def by_hash(self, hash: bytes, *, key: str) -> ReusedVector | None:
        """The vector of an image of that content, with its id if it is the one of that key; None if there is none."""
        # Vectors of removed images can be reused too, until the index is compacted.
        columns = "id, width, height, source = ? AND key = ? AND added <= ? AND removed > ? AS own"
        now = self._items.generation
        rows = self._items.rows(
            f"SELECT {columns} FROM items WHERE hash = ? AND id < ? ORDER BY own DESC LIMIT 1",
            *(self._source, key, now, now, hash, len(self._vectors)),
        )
        if not rows:
            return None
        [(id, width, height, own)] = rows
        return self._reused(id, hash, width, height, own=bool(own))

    def _reused(self, id: int, hash: bytes, width: int, height: int, *, own: bool) -> ReusedVector:
        vector = self._vectors.take(np.array([id]))[0]
        return ReusedVector(vector=vector, hash=hash, width=width, height=height, id=id if own else None)


class UncommittedVectors:
    """Vectors that no manifest names, of earlier transactions and of the present one, for the records of one source."""

    def __init__(self, folder: Path, base: Manifest, *, source: int, generation: int) -> None:
        self._folder, self._dim, self._first = folder, base.dim, base.rows
        self._source = source_text(base.sources[source])
        self._items = ItemsReader(folder / base.items_file, generation=generation)
        self._files: dict[str, Rows] = {}

    def kept(self, records: Sequence[Record]) -> list[ReusedVector | None]:
        """For each record its vector, if it had one and is unchanged."""
        keys = json.dumps([record.key for record in records])
        rows = self._items.rows(
            f"SELECT {UNFINISHED} FROM unfinished WHERE source = ? AND key IN {IN}", self._source, keys
        )
        found = {row[0]: row for row in rows}
        answers: list[ReusedVector | None] = []
        for record in records:
            row = found.get(record.key)
            same = row is not None and record.problem is None and row[1:3] == (record.size, record.mtime_ns)
            answers.append(self._reused(row) if row is not None and same else None)
        return answers

    def by_hash(self, hash: bytes, *, key: str) -> ReusedVector | None:
        """The vector of an image of that content; None if there is none."""
        rows = self._items.rows(f"SELECT {UNFINISHED} FROM unfinished WHERE hash = ? LIMIT 1", hash)
        if not rows:
            rows = self._items.rows(
                f"SELECT key, size, mtime_ns, hash, width, height, {VECTOR_PLACE} FROM items "
                "WHERE hash = ? AND id >= ? LIMIT 1",
                *(self._items.generation, self._first, self._first, hash, self._first),
            )
        return self._reused(rows[0]) if rows else None

    def _reused(self, row: _Row) -> ReusedVector | None:
        _, _, _, hash, width, height, file, number = row
        rows = self._mapped(file, number)
        if number >= len(rows) or abs(float(np.linalg.norm(rows[number].astype(np.float32))) - 1) > 0.01:
            return None
        return ReusedVector(vector=rows[number], hash=hash, width=width, height=height)

    def _mapped(self, file: str, number: int) -> Rows:
        """The rows of a file; one that is being written grows."""
        if number >= len(self._files.get(file, ())):
            try:
                self._files[file] = map_appended(self._folder / file, dim=self._dim)
            except (OSError, IndexDamagedError):
                self._files[file] = np.empty((0, self._dim), dtype=np.float16)
        return self._files[file]

    def close(self) -> None:
        """Close the items file once nothing reads it."""
        self._items.close()
