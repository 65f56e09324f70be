"""Reads the rows of ``items-*.db``: one per image and change of it, and one per image that could not be read.

A row says in which generation it was ``added`` and ``removed``. A reader of generation N sees the rows with
``added <= N < removed``, even while another process writes: a writer uses a number that no manifest names yet. The
id of an item is the number of its vector.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.records.values import EMBEDDED, parsed
from llm2clip.indexer.storage.items_file import REPAIR, connect, connect_rolled_back, cut_off, meta_of, sqlite
from llm2clip.indexer.storage.items_schema import NEVER
from llm2clip.indexer.storage.manifest import Manifest


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


class StoredRow(NamedTuple):
    """A row of ``items`` as it is stored: its values may be of other types."""

    item: ItemRow
    added: int
    removed: int
    """One less than ``NEVER`` if what is stored is no generation."""
    checksum: int
    """-1 if what is stored is no number."""


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


ShownRow = tuple[int, int, str, str | None, str | None, int, int, int]
"""id, source, key, caption, metadata, width, height, mtime_ns."""
_SHOWN = "id, source, key, caption, metadata, width, height, mtime_ns"
_AT_ONCE = 10_000
_BOUND = 500
ITEM = ", ".join(ItemRow._fields)
ERROR = ", ".join(ErrorRow._fields)
IN = "(SELECT value FROM json_each(?))"  # any number of values in one statement that SQLite compiles once
NOT_BAD = "('sidecar', 'removed')"
"""Stages of ``errors`` that are not images that could not be read."""


def parts(values: Sequence[int], size: int = _AT_ONCE) -> Iterator[Sequence[int]]:
    """Ids in parts for one statement each."""
    return (values[start : start + size] for start in range(0, len(values), size))


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("id", "source", "size", "mtime_ns", "width", "height", "checksum", "added", "removed"), (int,)
    ),
    **dict.fromkeys(("key", "file", "stage", "reason"), (str,)),
    **dict.fromkeys(("path", "locator", "caption", "metadata"), (str, type(None))),
    **{"sidecars": (int, type(None)), "hash": (bytes,), "row": (int,)},
}
"""Types of the columns. SQLite stores any type in any column, and a file may come from a stranger."""


@cache
def _allowed(columns: str) -> frozenset[tuple[type, ...]] | None:
    """The types that a row of some columns may have; None if it is not of columns alone."""
    names = columns.split(", ")
    if not all(name in _TYPES for name in names):
        return None
    errors = columns == ERROR  # of an image that was never read, size and time are not known
    unknown = (int, type(None))
    kinds = [unknown if errors and name in ("size", "mtime_ns") else _TYPES[name] for name in names]
    return frozenset(product(*kinds))


def metadata_of(stored: str | None) -> dict[str, Any]:
    """The metadata of an item.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        return parsed(stored) if stored else {}
    except RecursionError as error:
        raise ValueError("its metadata is nested too deeply") from error


def shown_metadata(stored: str | None, *, mtime_ns: int) -> tuple[dict[str, Any], str | None, str | None]:
    """The metadata of an item; its time as ISO 8601, None if unknown; and where that is from.

    Raises:
        ValueError: the metadata is no JSON object.
    """
    metadata = metadata_of(stored)
    told = metadata.pop(EMBEDDED, None)
    if isinstance(told, dict) and type(told.get("ns")) is int:
        return metadata, str(told.get("time")), str(told.get("source"))
    if not mtime_ns:
        return metadata, None, None
    moment = datetime(1970, 1, 1) + timedelta(microseconds=mtime_ns // 1000)
    return metadata, f"{moment.isoformat(timespec='seconds')}Z", "file"


def has_types(row: ItemRow) -> bool:
    """Whether the values of a row have the types of its columns."""
    return tuple(map(type, row)) in (_allowed(ITEM) or ())


def has_error_types(row: Sequence[object]) -> bool:
    """Whether the values of a row of errors have the types of its columns, and its text is UTF-8."""
    texts = [value for value in row if isinstance(value, str)]
    return tuple(map(type, row)) in (_allowed(ERROR) or ()) and not any(map(_is_no_utf8, texts))


def _is_no_utf8(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def any_text(stored: bytes) -> str:
    """Text as it is stored, also what is no UTF-8."""
    return stored.decode("utf-8", "surrogateescape")


class ItemsReader:
    """Reads one generation of an items file, from any thread: rows that were added later or removed by then are hidden.

    Raises ``IndexDamagedError`` if the file is missing or is no such file.
    """

    def __init__(self, path: Path, *, generation: int, ids: int = 2**62, sources: int = 2**31) -> None:
        self.path, self.generation = path, generation
        self._limits = {"id": ids, "source": sources}
        self._lock = threading.Lock()
        self._db = connect(path)
        self.opened = 1
        """How often the file was opened: again, when a writer was killed that was writing it."""
        self.meta: dict[str, str] = self.read_meta()

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> Self:
        """Reads the committed items of an index."""
        path, sources = folder / manifest.items_file, len(manifest.sources)
        return cls(path, generation=manifest.generation, ids=manifest.rows, sources=sources)

    def read_meta(self) -> dict[str, str]:
        """The entries of ``meta`` as they are now."""
        return meta_of(self.rows("SELECT key, value FROM meta LIMIT 100"))

    def close(self) -> None:
        """Close the file, once nothing reads it: threads of a build that failed may still ask."""
        with self._lock:
            self._db.close()

    def rows(self, statement: str, *values: str | int | bytes) -> list[Any]:
        """The rows of a statement."""
        with self._lock, sqlite(self.path):
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:
                if not cut_off(error):
                    raise
                self._db.close()
                self._db = connect_rolled_back(self.path) or connect(self.path)
                self.opened += 1
                return self._db.execute(statement, values).fetchall()

    def settle(self) -> None:
        """Notice a writer that was killed while it wrote: ``opened`` is larger then."""
        self.rows("SELECT 1 FROM meta LIMIT 1")

    def select(self, columns: str, rest: str, *values: str | int | bytes) -> list[Any]:
        """Columns of the rows of a statement that goes on with ``rest``; refuses values of other types than ours."""
        found = self.rows(f"SELECT {columns} {rest}", *values)
        if (types := _allowed(columns)) is not None:
            for row in found:
                if tuple(map(type, row)) not in types:
                    raise IndexDamagedError(f"{self.path} is damaged: {columns} are {row!r:.200}. {REPAIR}")
        for place, name in enumerate(columns.split(", ")):
            end = self._limits.get(name)
            if end is not None and any(not 0 <= row[place] < end for row in found):
                raise IndexDamagedError(
                    f"{self.path} is damaged: an item has a {name} beyond {end:,}. {REPAIR}"
                )
        return found

    def visible(self, columns: str, condition: str = "", *values: str | int | bytes) -> list[Any]:
        """Columns of the items of this generation; ``condition`` is SQL that continues a ``WHERE`` clause."""
        now = self.generation
        return self.select(
            columns, f"FROM items WHERE added <= ? AND removed > ? {condition}", now, now, *values
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
            if not last < found[0][0] <= found[-1][0]:  # or it would never end
                raise IndexDamagedError(f"{self.path} is damaged: items are out of order. {REPAIR}")
            yield found
            last = found[-1][0]

    def each(self) -> Iterator[list[ItemRow]]:
        """All items by id, in lists."""
        for rows in self.pages(ITEM):
            yield [ItemRow._make(row) for row in rows]

    def stored(self) -> Iterator[StoredRow]:
        """The rows of this and all earlier generations by id, as they are stored: of any type, altered or not."""
        columns, last = f"{ITEM}, added, removed, checksum", (-(2**63), -(2**63))
        while found := self._as_stored(
            f"SELECT {columns} FROM items WHERE added <= ? AND (id, added) > (?, ?) ORDER BY id, added LIMIT 4096",
            *(self.generation, *last),
        ):
            for row in found:
                place = row[0], row[-3]
                if not all(isinstance(number, int) for number in place) or not last < place:
                    raise IndexDamagedError(f"{self.path} is damaged: items are out of order")
                last = place
                removed, checksum = (number if isinstance(number, int) else -1 for number in row[-2:])
                yield StoredRow(
                    ItemRow._make(row[:-3]), row[-3], NEVER - 1 if removed < 0 else removed, checksum
                )

    def _as_stored(self, statement: str, *values: int) -> list[Any]:
        with self._lock, sqlite(self.path):
            self._db.text_factory = any_text
            try:
                return self._db.execute(statement, values).fetchall()
            finally:
                self._db.text_factory = str

    def known(self, keys: Sequence[str], *, source: int) -> tuple[dict[str, StateRow], dict[str, ErrorRow]]:
        """Items and errors of some keys of a source, for a writer: nothing was removed since this generation."""
        where = f"WHERE source = ? AND key IN {IN} AND removed = {NEVER} AND added <= ?"
        values = (source, json.dumps(keys), self.generation)
        items = self.select(", ".join(StateRow._fields), f"FROM items {where}", *values)
        errors = self.select(ERROR, f"FROM errors {where}", *values)
        return {row[0]: StateRow._make(row) for row in items}, {row[1]: ErrorRow._make(row) for row in errors}

    def dead(self, *, rows: int) -> NDArray[np.int64]:
        """Ids below ``rows`` that belong to no item of this generation. Shape: (tombstones,), int64."""
        now = self.generation
        gone = self.select(
            "id",
            f"FROM items AS gone WHERE removed < {NEVER} AND removed <= ? AND id BETWEEN 0 AND ? "
            "AND NOT EXISTS (SELECT 1 FROM items WHERE id = gone.id AND added <= ? AND removed > ?)",
            *(now, rows - 1, now, now),
        )
        return np.unique(np.array([id for (id,) in gone], dtype=np.int64))

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
        found = self.select(
            ERROR,
            f"FROM errors WHERE added <= ? AND removed > ? {stages} ORDER BY key LIMIT ?",
            now,
            now,
            limit,
        )
        return [ErrorRow._make(row) for row in found]

    def last_end_of_errors(self) -> list[int]:
        """The last generation in which an image that could not be read goes, or several did; empty if none does."""
        return [
            end for (end,) in self.rows(f"SELECT max(removed) FROM errors WHERE removed < {NEVER}") if end
        ]

    def read_with(self, read: Callable[[sqlite3.Connection, int], int]) -> int:
        """What a function reads of this generation."""
        self.settle()
        with self._lock, sqlite(self.path):
            return read(self._db, self.generation)

    def damage(self) -> str | None:
        """What is wrong with the file as such; None if nothing is."""
        with suppress(IndexDamagedError):
            found = str(self.rows("PRAGMA integrity_check(1)")[0][0])
            return None if found == "ok" else found
        return "not a readable database"
