"""``items-*.db``: one SQLite row per picture, and one per picture that could not be read.

A file is written by one build, then never changed: readers open it as immutable, which also works on read-only
media and needs no lock. Ids are consecutive from 0 and are the row numbers of the vectors.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm2clip.indexer.errors import IndexDamagedError, IndexWriteError

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,       -- stable name below the root of the corpus; the URI is root/key
    path TEXT,                      -- file below the root that holds the bytes; NULL: the key is that file
    offset INTEGER,                 -- where in that file they begin; NULL: they are the whole file
    size INTEGER NOT NULL,          -- bytes of the encoded picture
    mtime_ns INTEGER NOT NULL,      -- of the file that holds it, nanoseconds since 1970
    sidecars INTEGER,               -- hash of names, sizes and times of its caption and metadata files; NULL: none
    hash BLOB NOT NULL,             -- BLAKE2b, 16 bytes, of the encoded picture
    width INTEGER NOT NULL,         -- as shown, in pixels
    height INTEGER NOT NULL,
    caption TEXT,
    metadata TEXT,                  -- JSON object; NULL: empty
    tombstone INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE errors (
    key TEXT PRIMARY KEY,
    stage TEXT NOT NULL,            -- list, read, decode or encode: not indexed; sidecar: indexed without it
    reason TEXT NOT NULL,
    size INTEGER,
    mtime_ns INTEGER
) WITHOUT ROWID;
"""


class ItemRow(NamedTuple):
    """A row of ``items``, without its tombstone."""

    id: int
    key: str
    path: str | None
    offset: int | None
    size: int
    mtime_ns: int
    sidecars: int | None
    hash: bytes
    width: int
    height: int
    caption: str | None
    metadata: str | None


class ErrorRow(NamedTuple):
    """A row of ``errors``."""

    key: str
    stage: str
    reason: str
    size: int | None
    mtime_ns: int | None


@dataclass(frozen=True, kw_only=True)
class Known:
    """What an items file knows about some keys."""

    items: Mapping[str, ItemRow]
    errors: Mapping[str, ErrorRow]


ShownRow = tuple[int, str, str | None, str | None, int, int]
"""id, key, caption, metadata, width, height."""
_SHOWN = "id, key, caption, metadata, width, height"
_AT_ONCE = 500

_ITEM = ", ".join(ItemRow._fields)
_ERROR = ", ".join(ErrorRow._fields)
_IN = "(SELECT value FROM json_each(?))"  # any number of values in one statement that SQLite compiles once


@contextmanager
def _sqlite(path: Path, *, writing: bool = False) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if writing:
            raise IndexWriteError(f"cannot write {path}: {error}") from error
        raise IndexDamagedError(f"{path} is damaged: {error}. Run the build command again") from error


class ItemsWriter:
    """Writes the items file of a generation. Rows are safe from a killed process after ``commit``.

    Args:
        path: the file, which must not exist.
        meta: what the generation is: see ``store.py``.

    Raises:
        IndexWriteError: the file cannot be made.
    """

    def __init__(self, path: Path, *, meta: Mapping[str, str]) -> None:
        self.path = path
        self._closed = False
        with _sqlite(path, writing=True):
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(f"BEGIN;{_SCHEMA}")
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            self._db.execute("COMMIT")

    def append(self, items: Sequence[ItemRow], errors: Sequence[ErrorRow]) -> None:
        """Write rows of both tables.

        Raises:
            IndexWriteError: the disk is full, or worse.
        """
        with _sqlite(self.path, writing=True):
            if not self._db.in_transaction:
                self._db.execute("BEGIN")
            marks = ", ".join("?" * len(ItemRow._fields))
            self._db.executemany(f"INSERT INTO items ({_ITEM}) VALUES ({marks})", items)
            self._db.executemany(f"INSERT INTO errors ({_ERROR}) VALUES (?, ?, ?, ?, ?)", errors)

    def commit(self) -> None:
        """Make what was appended last."""
        with _sqlite(self.path, writing=True):
            if not self._closed and self._db.in_transaction:
                self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file; what was not committed is dropped."""
        self._closed = True
        self._db.close()


class ItemsReader:
    """Reads an items file, from any thread.

    Args:
        path: the file.
        committed: whether a manifest names it, so that nothing will ever change it.
        writable: for one that a build left behind: take back first what that build had not committed.

    Raises:
        IndexDamagedError: the file is missing or is no such file.
    """

    def __init__(self, path: Path, *, committed: bool = False, writable: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()
        if not path.is_file():
            raise IndexDamagedError(f"{path} is missing: the index is not whole. Run the build command again")
        mode = "mode=rw" if writable else "mode=ro&immutable=1" if committed else "mode=ro"
        with _sqlite(path):
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?{mode}",
                uri=True,
                check_same_thread=False,
                isolation_level=None,
            )
            self._db.execute("PRAGMA mmap_size = 1073741824")
            self.meta: dict[str, str] = dict(self._db.execute("SELECT key, value FROM meta"))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _all(self, statement: str, *values: str | int) -> list[Any]:
        with self._lock, _sqlite(self.path):
            return self._db.execute(statement, values).fetchall()

    def shown(self, ids: Sequence[int]) -> dict[int, ShownRow]:
        """What hits show of some items. This is on the path of every search."""
        rows: list[ShownRow] = []
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE]
            marks = ("?, " * len(part))[:-2]
            rows += self._all(f"SELECT {_SHOWN} FROM items WHERE id IN ({marks})", *part)
        return {row[0]: row for row in rows}

    def get(self, id: int) -> ItemRow | None:
        """The row of an item, if there is one of that id."""
        rows = self._all(f"SELECT {_ITEM} FROM items WHERE id = ?", id)
        return ItemRow._make(rows[0]) if rows else None

    def find(self, keys: Sequence[str]) -> Known:
        """What is known about some keys."""
        wanted = json.dumps(keys)
        items = self._all(f"SELECT {_ITEM} FROM items WHERE key IN {_IN}", wanted)
        errors = self._all(f"SELECT {_ERROR} FROM errors WHERE key IN {_IN}", wanted)
        return Known(
            items={row[1]: ItemRow._make(row) for row in items},
            errors={row[0]: ErrorRow._make(row) for row in errors},
        )

    def count(self) -> int:
        """How many items there are."""
        return int(self._all("SELECT count(*) FROM items")[0][0])

    def count_bad(self) -> int:
        """How many pictures could not be read."""
        return int(self._all("SELECT count(*) FROM errors WHERE stage != 'sidecar'")[0][0])

    def errors(self, *, limit: int = -1) -> list[ErrorRow]:
        """The pictures that could not be read, and sidecars, by key; ``limit`` at most, negative for all."""
        rows = self._all(f"SELECT {_ERROR} FROM errors ORDER BY key LIMIT ?", limit)
        return [ErrorRow._make(row) for row in rows]

    def damage(self) -> str | None:
        """What is wrong with the file as such, or with the order of its ids; None if nothing is."""
        found = str(self._all("PRAGMA quick_check(1)")[0][0])
        if found != "ok":
            return found
        count, low, high = self._all("SELECT count(*), min(id), max(id) FROM items")[0]
        if count and (low != 0 or high != count - 1):
            return f"{count} items have ids {low} to {high}, expected 0 to {count - 1}"
        return None
