"""What writers that died left behind: their rows are taken back, their vectors wait to be taken over."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.storage.items_reader import IN, NEVER, connect, query, sqlite
from llm2clip.indexer.storage.items_writer import ItemsWriter, drop_uncommitted
from llm2clip.indexer.storage.outcome import ReusedVector
from llm2clip.indexer.storage.vector_segments import SEGMENT_ROWS, Rows, map_appended

_COLUMNS = "key, size, mtime_ns, hash, width, height, file, row"
_PLACE = f"printf('vectors-%05d-%05d.npy', ?, (id - ?) / {SEGMENT_ROWS}), (id - ?) % {SEGMENT_ROWS}"
"""Where the vector of an id lies: takes the generation that wrote it, and twice the id of its first vector."""
_Row = tuple[str, int, int, bytes, int, int, str, int]


def source_text(source: Mapping[str, str]) -> str:
    """A source as it stands in ``unfinished``: without the spelling that the user chose."""
    return json.dumps({**source, "spec": ""}, sort_keys=True)


def stash_uncommitted(writer: ItemsWriter, *, generation: int, rows: int) -> None:
    """Bring an items file back to what is committed, and note down where unfinished vectors lie.

    Args:
        writer: of the items file; nothing may be open in it.
        generation: the one that is committed; 0 if none is.
        rows: how many vectors it has.
    """
    db = writer.db
    with sqlite(writer.path):
        meta = dict(db.execute("SELECT key, value FROM meta"))
    serial = int(meta.get("writing", "0"))
    sources = json.loads(meta.get("sources", "[]"))
    writer.begin()
    if serial > generation:
        with sqlite(writer.path, writing=True):
            for number, source in enumerate(sources):
                db.execute(
                    f"INSERT OR REPLACE INTO unfinished (source, {_COLUMNS}) "
                    "SELECT ?, key, size, mtime_ns, hash, width, height, "
                    f"{_PLACE} FROM items WHERE id >= ? AND source = ? AND removed = {NEVER}",
                    (source_text(source), serial, rows, rows, rows, number),
                )
    drop_uncommitted(writer, generation=generation, rows=rows)
    writer.set_meta("writing", str(generation))
    writer.commit()


def prune(writer: ItemsWriter) -> None:
    """After a commit: forget unfinished vectors whose images are in the index now."""
    writer.begin()
    with sqlite(writer.path, writing=True):
        writer.db.execute(
            "DELETE FROM unfinished WHERE EXISTS "
            f"(SELECT 1 FROM items WHERE items.hash = unfinished.hash AND items.removed = {NEVER})"
        )
    writer.commit()


def files_of(path: Path) -> frozenset[str]:
    """Names of the vector files that unfinished vectors of an items file lie in."""
    return frozenset(name for (name,) in query(path, "SELECT DISTINCT file FROM unfinished"))


@dataclass(frozen=True, kw_only=True)
class Writing:
    """The change that is being written: its own vectors are there to be taken over too."""

    generation: int
    """Number in the names of its vector files."""
    rows: int
    """Id of its first vector."""


class Unfinished:
    """Vectors that no manifest names: of a change that was never committed, and of the one that is being written.

    Args:
        path: the items file.
        source: the source whose records will be asked about.
        dim: length of the vectors.
        writing: the change that is being written.
    """

    def __init__(self, path: Path, *, source: Mapping[str, str], dim: int, writing: Writing) -> None:
        self._path, self._dim, self._source, self._writing = path, dim, source_text(source), writing
        self._db, self._lock = connect(path), threading.Lock()
        self._files: dict[str, Rows] = {}

    def kept(self, records: Sequence[Record]) -> list[ReusedVector | None]:
        """For each record its vector, if it had one and is unchanged."""
        wanted = json.dumps([record.key for record in records])
        rows = self._rows(
            f"SELECT {_COLUMNS} FROM unfinished WHERE source = ? AND key IN {IN}", self._source, wanted
        )
        found = {row[0]: row for row in rows}
        answers: list[ReusedVector | None] = []
        for record in records:
            row = found.get(record.key)
            same = row is not None and record.problem is None and row[1:3] == (record.size, record.mtime_ns)
            answers.append(self._kept(row) if row is not None and same else None)
        return answers

    def by_hash(self, hash: bytes, *, key: str) -> ReusedVector | None:
        """The vector of the image of that content, if there is one."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM unfinished WHERE hash = ? LIMIT 1", hash)
        if not rows:
            first, serial = self._writing.rows, self._writing.generation
            rows = self._rows(
                f"SELECT key, size, mtime_ns, hash, width, height, {_PLACE} FROM items "
                "WHERE hash = ? AND id >= ? LIMIT 1",
                *(serial, first, first, hash, first),
            )
        return self._kept(rows[0]) if rows else None

    def _rows(self, statement: str, *values: str | int | bytes) -> list[_Row]:
        with self._lock, sqlite(self._path):
            return self._db.execute(statement, values).fetchall()

    def _kept(self, row: _Row) -> ReusedVector | None:
        _, _, _, hash, width, height, file, number = row
        rows = self._mapped(file, number)
        if number >= len(rows) or abs(float(np.linalg.norm(rows[number].astype(np.float32))) - 1) > 0.01:
            return None
        return ReusedVector(vector=rows[number], hash=hash, width=width, height=height)

    def _mapped(self, file: str, number: int) -> Rows:
        """The rows of a file; one that is being written grows."""
        if number >= len(self._files.get(file, ())):
            try:
                self._files[file] = map_appended(self._path.parent / file, dim=self._dim)
            except (OSError, IndexDamagedError):
                self._files[file] = np.empty((0, self._dim), dtype=np.float16)
        return self._files[file]

    def close(self) -> None:
        """Close the file, once nothing reads it: threads of a build that failed may still ask."""
        with self._lock:
            self._db.close()


def count_uncommitted(path: Path, *, rows: int) -> int:
    """How many unfinished vectors there are beyond the ``rows`` that are committed, set aside already or not."""
    count = "(SELECT count(*) FROM unfinished) + (SELECT count(*) FROM items WHERE id >= ?)"
    return int(query(path, f"SELECT {count}", rows)[0][0])
