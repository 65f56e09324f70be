"""``items-*.db``: one SQLite row per image and change of it, and one per image that could not be read.

A row says in which generation it was ``added`` and ``removed``. A reader of generation N sees the rows with
``added <= N < removed``, even while another process writes: a writer uses a number that no manifest names yet. The
id of an item is the number of its vector.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.errors import IndexDamagedError, IndexerError, IndexWriteError

NEVER = 2**63 - 1
"""``removed`` of what is still there."""

SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER NOT NULL,            -- number of its vector
    added INTEGER NOT NULL,         -- generation that added this row
    removed INTEGER NOT NULL DEFAULT {NEVER},  -- generation that took it away; this number: none
    source INTEGER NOT NULL,        -- position of its corpus among the manifest's sources
    key TEXT NOT NULL,              -- stable name below the root of the corpus; the URI is root/key
    path TEXT,                      -- file below the root that holds the bytes; NULL: the key is that file
    locator TEXT,                   -- JSON: how to read the image again; NULL: it is the whole file of that key
    size INTEGER NOT NULL,          -- bytes of the encoded image
    mtime_ns INTEGER NOT NULL,      -- of the file that holds it, nanoseconds since 1970
    sidecars INTEGER,               -- hash of names, sizes and times of its caption and metadata files; NULL: none
    hash BLOB NOT NULL,             -- BLAKE2b, 16 bytes, of the encoded image
    width INTEGER NOT NULL,         -- as shown, in pixels
    height INTEGER NOT NULL,
    caption TEXT,
    metadata TEXT,                  -- JSON object; NULL: empty
    checksum INTEGER NOT NULL,      -- of the row: see docs/index-format.md
    PRIMARY KEY (id, added)
) WITHOUT ROWID;
CREATE UNIQUE INDEX items_live ON items (source, key) WHERE removed = {NEVER};
CREATE INDEX items_hash ON items (hash);
CREATE INDEX items_removed ON items (removed) WHERE removed < {NEVER};
CREATE TABLE errors (
    source INTEGER NOT NULL,
    key TEXT NOT NULL,
    stage TEXT NOT NULL,            -- list, read, decode or encode: not indexed; sidecar: indexed without it;
                                    -- removed: taken out by hand, and to stay out
    reason TEXT NOT NULL,
    size INTEGER,
    mtime_ns INTEGER,
    added INTEGER NOT NULL,
    removed INTEGER NOT NULL DEFAULT {NEVER},
    PRIMARY KEY (source, key, added)
) WITHOUT ROWID;
CREATE TABLE unfinished (           -- vectors of a change that was never committed, to be taken over by the next
    source TEXT NOT NULL,           -- JSON of the source, as in the manifest
    key TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    hash BLOB NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    file TEXT NOT NULL,             -- of vectors, not named by the manifest
    row INTEGER NOT NULL,
    PRIMARY KEY (source, key)
) WITHOUT ROWID;
CREATE INDEX unfinished_hash ON unfinished (hash);
"""


class ItemRow(NamedTuple):
    """A row of ``items``, without its generations and checksum."""

    id: int
    source: int
    key: str
    path: str | None
    locator: str | None
    size: int
    mtime_ns: int
    sidecars: int | None
    hash: bytes
    width: int
    height: int
    caption: str | None
    metadata: str | None


class StateRow(NamedTuple):
    """The columns of an item that tell whether its image changed."""

    key: str
    id: int
    size: int
    mtime_ns: int
    sidecars: int | None
    locator: str | None
    hash: bytes
    width: int
    height: int


class ErrorRow(NamedTuple):
    """A row of ``errors``, without its generations."""

    source: int
    key: str
    stage: str
    reason: str
    size: int | None
    mtime_ns: int | None


ShownRow = tuple[int, int, str, str | None, str | None, int, int]
"""id, source, key, caption, metadata, width, height."""
_SHOWN = "id, source, key, caption, metadata, width, height"
_AT_ONCE = 10_000
_BOUND = 500
_PATIENCE = 60.0
"""Seconds to wait for a writer's commit."""
_FOR_NOW = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
    | {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_FULL}
)
"""Error codes of SQLite that do not mean damage."""

ITEM = ", ".join(ItemRow._fields)
ERROR = ", ".join(ErrorRow._fields)
IN = "(SELECT value FROM json_each(?))"  # any number of values in one statement that SQLite compiles once
NOT_BAD = "('sidecar', 'removed')"
"""Stages of ``errors`` that are not images that could not be read."""


def parts(values: Sequence[int], size: int = _AT_ONCE) -> Iterator[Sequence[int]]:
    """Ids in parts for one statement each."""
    return (values[start : start + size] for start in range(0, len(values), size))


@contextmanager
def sqlite(path: Path, *, writing: bool = False) -> Iterator[None]:
    """Turn errors of SQLite into ours."""
    try:
        yield
    except sqlite3.Error as error:
        if writing:
            raise IndexWriteError(f"cannot write {path}: {error}") from error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _FOR_NOW and path.is_file():  # not damage: a build would embed everything again
            raise IndexerError(
                f"{path} cannot be read now: {error}. Nothing was changed: run the command again"
            ) from error
        raise IndexDamagedError(f"{path} is damaged: {error}. Run the build command again") from error


def connect(path: Path) -> sqlite3.Connection:
    """A connection that reads an items file, for any thread; also on read-only media."""
    if not path.is_file():
        raise IndexDamagedError(f"{path} is missing: the index is incomplete. Run the build command again")
    with sqlite(path):
        return open_database(path, mode="ro")


def open_database(path: Path, *, mode: str) -> sqlite3.Connection:
    """A connection without implicit transactions, for any thread. Modes: ``ro``, ``rw``, ``rwc`` (create)."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=_PATIENCE)


def _roll_back_journal(path: Path) -> None:
    """Roll back the journal of a writer that was killed while it wrote; this needs a connection that may write."""
    with sqlite(path), closing(open_database(path, mode="rw")) as db:
        try:
            db.execute("SELECT count(*) FROM meta").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise
            raise IndexerError(
                f"{path} was left half written by a killed process, and this user may not write to it: run  "
                "llm2clip-index verify  once as a user with write permission"
            ) from error


def query(path: Path, statement: str, *values: str | int | bytes) -> list[Any]:
    """The rows of a statement on an items file, on a connection of its own."""
    with closing(connect(path)) as db:
        return _run(db, path, statement, values)


def unfinished_files(path: Path) -> frozenset[str]:
    """Names of the vector files that the unfinished vectors of an items file lie in."""
    return frozenset(name for (name,) in query(path, "SELECT DISTINCT file FROM unfinished"))


def count_all(path: Path) -> int:
    """Number of items of every generation and of unfinished vectors."""
    return int(query(path, "SELECT (SELECT count(*) FROM items) + (SELECT count(*) FROM unfinished)")[0][0])


def _run(
    db: sqlite3.Connection, path: Path, statement: str, values: Sequence[str | int | bytes]
) -> list[Any]:
    with sqlite(path):
        try:
            return db.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            _roll_back_journal(path)
            return db.execute(statement, values).fetchall()


class ItemsReader:
    """Reads one generation of an items file, from any thread: rows that were added later or removed by then are hidden.

    Raises ``IndexDamagedError`` if the file is missing or is no such file.
    """

    def __init__(self, path: Path, *, generation: int) -> None:
        self.path, self.generation = path, generation
        self._lock = threading.Lock()
        self._db = connect(path)
        self.meta: dict[str, str] = dict(self.rows("SELECT key, value FROM meta"))

    def close(self) -> None:
        """Close the file, once nothing reads it: threads of a build that failed may still ask."""
        with self._lock:
            self._db.close()

    def rows(self, statement: str, *values: str | int | bytes) -> list[Any]:
        """The rows of a statement."""
        with self._lock:
            return _run(self._db, self.path, statement, values)

    def settle(self) -> None:
        """Roll back the journal of a killed writer; a connection with an authorizer may not."""
        self.rows("SELECT 1 FROM meta LIMIT 1")

    def visible(self, columns: str, condition: str = "", *values: str | int | bytes) -> list[Any]:
        """Columns of the items of this generation; ``condition`` is SQL that continues a ``WHERE`` clause."""
        now = self.generation
        return self.rows(
            f"SELECT {columns} FROM items WHERE added <= ? AND removed > ? {condition}", now, now, *values
        )

    def shown(self, ids: Sequence[int]) -> dict[int, ShownRow]:
        """What hits show of some items."""
        found: list[ShownRow] = []
        for part in parts(ids, _BOUND):
            marks = ("?, " * len(part))[:-2]
            found += self.visible(_SHOWN, f"AND id IN ({marks})", *part)
        return {row[0]: row for row in found}

    def get(self, id: int) -> ItemRow | None:
        """The row of an item, if there is one of that id."""
        found = self.visible(ITEM, "AND id = ?", id)
        return ItemRow._make(found[0]) if found else None

    def of_ids(self, columns: str, ids: Sequence[int]) -> Iterator[Any]:
        """Columns of the items of some ids."""
        for part in parts(ids):
            yield from self.visible(columns, f"AND id IN {IN}", json.dumps(part))

    def pages(self, columns: str) -> Iterator[list[Any]]:
        """Columns of all items by id, in lists; the first column is ``id``."""
        last = -1
        while found := self.visible(columns, "AND id > ? ORDER BY id LIMIT 4096", last):
            yield found
            last = found[-1][0]

    def each(self) -> Iterator[list[ItemRow]]:
        """All items by id, in lists."""
        for rows in self.pages(ITEM):
            yield [ItemRow._make(row) for row in rows]

    def checked(self) -> Iterator[tuple[ItemRow, int]]:
        """All items by id with the checksums that were stored with them."""
        for rows in self.pages(f"{ITEM}, checksum"):
            yield from ((ItemRow._make(row[:-1]), row[-1]) for row in rows)

    def known(self, keys: Sequence[str], *, source: int) -> tuple[dict[str, StateRow], dict[str, ErrorRow]]:
        """Items and errors of some keys of a source, for a writer: nothing was removed since this generation."""
        where = f"WHERE source = ? AND key IN {IN} AND removed = {NEVER} AND added <= ?"
        values = (source, json.dumps(keys), self.generation)
        items = self.rows(f"SELECT {', '.join(StateRow._fields)} FROM items {where}", *values)
        errors = self.rows(f"SELECT {ERROR} FROM errors {where}", *values)
        return {row[0]: StateRow._make(row) for row in items}, {row[1]: ErrorRow._make(row) for row in errors}

    def dead(self, *, rows: int) -> NDArray[np.int64]:
        """Ids below ``rows`` that belong to no item of this generation. Shape: (tombstones,), int64."""
        now = self.generation
        gone = self.rows(
            f"SELECT DISTINCT id FROM items AS gone WHERE removed < {NEVER} AND removed <= ? AND id < ? "
            "AND NOT EXISTS (SELECT 1 FROM items WHERE id = gone.id AND added <= ? AND removed > ?)",
            *(now, rows, now, now),
        )
        return np.sort(np.array([id for (id,) in gone], dtype=np.int64))

    def count(self) -> int:
        """Number of items."""
        return int(self.visible("count(*)")[0][0])

    def count_bad(self) -> int:
        """Number of images that could not be read."""
        now = self.generation
        statement = f"SELECT count(*) FROM errors WHERE stage NOT IN {NOT_BAD} AND added <= ? AND removed > ?"
        return int(self.rows(statement, now, now)[0][0])

    def errors(self, *, limit: int = -1, every: bool = False) -> list[ErrorRow]:
        """Images and sidecars that could not be read, by key; with ``every`` also images that were removed by hand."""
        now = self.generation
        stages = "" if every else "AND stage != 'removed'"
        found = self.rows(
            f"SELECT {ERROR} FROM errors WHERE added <= ? AND removed > ? {stages} ORDER BY key LIMIT ?",
            *(now, now, limit),
        )
        return [ErrorRow._make(row) for row in found]

    def damage(self) -> str | None:
        """What is wrong with the file as such; None if nothing is."""
        with suppress(IndexDamagedError):
            found = str(self.rows("PRAGMA integrity_check(1)")[0][0])
            return None if found == "ok" else found
        return "not a readable database"
