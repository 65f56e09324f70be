"""Vectors that were made already: those of the committed index.

An image keeps its vector while its name, size and time of change stay the same and the encoder is the same one; a
image of another name or time takes over the vector of one with the same content.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.records.record import Record
from llm2clip.indexer.storage.items_reader import ErrorRow, ItemRow, ItemsReader
from llm2clip.indexer.storage.manifest import Manifest
from llm2clip.indexer.storage.outcome import ReusedVector
from llm2clip.indexer.storage.vector_segments import Vectors, map_segment


class VectorCache(Protocol):
    """Vectors that were made before. Safe to ask from several threads."""

    def kept(self, records: Sequence[Record]) -> Sequence[ReusedVector | ErrorRow | None]:
        """For each record its vector, or why it could not be decoded; None where it has to be looked at."""

    def by_hash(self, hash: bytes, *, key: str) -> ReusedVector | None:
        """The vector of the image of that content, if there is one; with its id if it is the one of that key."""


class CommittedVectors:
    """The images of the committed index, as one source sees them.

    Args:
        folder: the index.
        manifest: what it says about itself.
        source: position of the source whose records will be asked about.

    Raises:
        IndexDamagedError: a file is missing or is not the one that was committed.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, source: int) -> None:
        mapped = [map_segment(folder / s.file, rows=s.rows, dim=manifest.dim) for s in manifest.segments]
        self._vectors, self._source = Vectors(mapped, dim=manifest.dim), source
        self.items = ItemsReader(folder / manifest.items_file, generation=manifest.generation)
        self.seen: NDArray[np.bool_] = np.zeros(manifest.rows, dtype=np.bool_)
        """Ids whose keys were asked about. Shape: (rows,)."""
        self.seen_errors: set[str] = set()
        """Keys with errors that were asked about."""

    def kept(self, records: Sequence[Record]) -> list[ReusedVector | ErrorRow | None]:
        """For each record its vector, or why it could not be decoded; None where it has to be looked at."""
        known = self.items.find([record.key for record in records], source=self._source)
        found: list[ReusedVector | ErrorRow | None] = []
        for record in records:
            item, error = known.items.get(record.key), known.errors.get(record.key)
            if item is not None and _same(record, item):
                vector = self._vectors.take(np.array([item.id]))[0]
                found.append(
                    ReusedVector(
                        vector=vector, hash=item.hash, width=item.width, height=item.height, id=item.id
                    )
                )
            else:
                found.append(error if error is not None and _same_error(record, error) else None)
        return found

    def by_hash(self, hash: bytes, *, key: str) -> ReusedVector | None:
        """The vector of the image of that content, if there is one; with its id if it is the one of that key."""
        # Vectors of images that were removed lie there too, until the index is compacted.
        columns = "id, width, height, source = ? AND key = ? AND added <= ? AND removed > ? AS own"
        now = self.items.generation
        rows = self.items.rows(
            f"SELECT {columns} FROM items WHERE hash = ? AND id < ? ORDER BY own DESC LIMIT 1",
            *(self._source, key, now, now, hash, len(self._vectors)),
        )
        if not rows:
            return None
        [(id, width, height, own)] = rows
        vector = self._vectors.take(np.array([id]))[0]
        return ReusedVector(vector=vector, hash=hash, width=width, height=height, id=id if own else None)

    def unchanged(self, records: Sequence[Record], *, by_hand: bool = False) -> list[bool]:
        """Whether each record is in the index just as it is now, captions and errors included; all are seen.

        Those that were removed by hand are to stay out, so they count as unchanged, unless they are named by hand.
        """
        known = self.items.known([record.key for record in records], source=self._source)
        seen = [found.id for found in known.items.values()]
        self.seen[seen] = True
        self.seen_errors.update(known.errors)
        answers: list[bool] = []
        for record in records:
            item, error = known.items.get(record.key), known.errors.get(record.key)
            if error is not None and error.stage == "removed":
                answers.append(not by_hand)
            elif record.problem is not None:
                answers.append(error is not None and error.reason == record.problem)
            elif item is not None:
                now = (record.size or 0, record.mtime_ns or 0, record.sidecars, record.locator)
                answers.append(now == (item.size, item.mtime_ns, item.sidecars, item.locator))
            else:
                answers.append(error is not None and _same_error(record, error))
        return answers

    def close(self) -> None:
        """Close the items."""
        self.items.close()


def _same(record: Record, item: ItemRow) -> bool:
    now = (record.size or 0, record.mtime_ns or 0)
    return record.problem is None and now == (item.size, item.mtime_ns)


def _same_error(record: Record, error: ErrorRow) -> bool:
    # Only what could be read and not decoded stays bad until it changes: a permission may have been given since.
    known = (error.stage, error.size, error.mtime_ns)
    return record.problem is None and known == ("decode", record.size, record.mtime_ns)
