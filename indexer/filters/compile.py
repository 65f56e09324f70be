"""Compiles filters (docs/filters.md) to SQL and evaluates them.

compile_where("time >= '2024-05' AND width > height AND meta.author = 'Ann'")
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.filters import fields
from llm2clip.indexer.filters.fields import COLUMNS, FIELDS, META, Value
from llm2clip.indexer.filters.parser import Parser
from llm2clip.indexer.filters.sandbox import REPAIRED, time_limit
from llm2clip.indexer.filters.tokenizer import WhereError
from llm2clip.indexer.records.values import EMBEDDED

__all__ = ["SECONDS", "Where", "WhereError", "compile_where"]

SECONDS = 30.0
"""Time limit of a filter over an index."""

_THERE = "added <= ? AND removed > ?"
_COPIES = "count(*) OVER (PARTITION BY hash) AS copies"
_COUNTED = f"(SELECT {', '.join(sorted(COLUMNS))}, {_COPIES} FROM items WHERE {_THERE})"
_LOOKED_AT = 5_000
_BOUND = 500
_PLAIN = re.compile(r"[^\W\d]\w*")
_JSON = "(metadata,"
_VALID_JSON = f"(CASE WHEN json_valid(metadata) THEN metadata ELSE {REPAIRED}(metadata) END,"


@dataclass(frozen=True, kw_only=True)
class Where:
    """A compiled filter; made by ``compile_where``."""

    text: str
    condition: str
    """SQL over the columns of ``items``, with a ``?`` for each value."""
    values: tuple[Value, ...]
    """Values to bind, in order."""
    fields: frozenset[str]
    """Names of the fields in it."""

    def mask(
        self, connection: sqlite3.Connection, *, rows: int, commit: int, seconds: float = SECONDS
    ) -> NDArray[np.bool_]:
        """Which images pass, by id.

        Args:
            connection: to the items, after ``guard``; not used elsewhere meanwhile.
            rows: number of ids.
            commit: the generation; images added later or removed by then do not pass.
            seconds: time limit.

        Returns:
            Shape: (rows,), bool.

        Raises:
            WhereError: it takes longer than ``seconds``.
            IndexDamagedError: the items cannot be read.
        """
        try:
            with time_limit(connection, seconds=seconds):
                try:
                    ids = self._ids(connection, commit, self.condition)
                except sqlite3.OperationalError as error:
                    if "malformed JSON" not in str(error):
                        raise
                    # NaN is JSON to Python but not to SQLite, and earlier releases stored it.
                    ids = self._ids(connection, commit, self.condition.replace(_JSON, _VALID_JSON))
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise IndexDamagedError(f"the items of the index cannot be read: {error}") from error
            problem = f"the filter was stopped after {seconds:g} seconds: simplify it"
            raise WhereError(problem, text=self.text, start=0, end=len(self.text)) from error
        except sqlite3.DatabaseError as error:
            raise IndexDamagedError(f"the items of the index cannot be read: {error}") from error
        mask = np.zeros(rows, dtype=np.bool_)
        mask[ids[(ids >= 0) & (ids < rows)]] = True
        return mask

    def _ids(self, connection: sqlite3.Connection, commit: int, condition: str) -> NDArray[np.int64]:
        there = (commit, commit)
        if "copies" in self.fields:
            statement, values = f"SELECT id FROM {_COUNTED} WHERE {condition}", (*there, *self.values)
        else:
            statement = f"SELECT id FROM items WHERE {_THERE} AND {condition}"
            values = (*there, *self.values)
        found = connection.execute(statement, values)
        return np.fromiter((row[0] for row in found), dtype=np.int64)


def fields_of(
    connection: sqlite3.Connection, ids: Sequence[int], names: Sequence[str], *, commit: int
) -> dict[int, tuple[Any, ...]]:
    """Fields (of ``FIELDS``) of some images of a generation, by id, over a connection after ``guard``."""
    columns = ", ".join(FIELDS[name].sql for name in names).replace(_JSON, _VALID_JSON)
    alike = (
        "(SELECT count(*) FROM items AS other WHERE other.hash = items.hash AND added <= ? AND removed > ?)"
    )
    counted = (
        f"SELECT {', '.join(sorted(COLUMNS))}, {alike} AS copies FROM items WHERE {_THERE} AND id IN ({{}})"
    )
    found: dict[int, tuple[Any, ...]] = {}
    for start in range(0, len(ids), _BOUND):
        part = ids[start : start + _BOUND]
        statement = f"SELECT id, {columns} FROM ({counted.format(', '.join('?' * len(part)))})"
        try:
            rows = connection.execute(statement, (*(commit,) * 4, *part)).fetchall()
        except sqlite3.DatabaseError as error:
            raise IndexDamagedError(f"the items of the index cannot be read: {error}") from error
        found |= {row[0]: row[1:] for row in rows}
    return found


def every(connection: sqlite3.Connection, names: Sequence[str], *, commit: int) -> Iterator[tuple[Any, ...]]:
    """Id and fields (of ``FIELDS``) of each image up to a generation, those removed by then included; the newest last.

    Over a connection after ``guard``; ``IndexDamagedError`` if the items cannot be read.
    """
    columns = ", ".join(FIELDS[name].sql for name in names)
    # NaN is JSON to Python but not to SQLite, and earlier releases stored it.
    columns = columns.replace(_JSON, _VALID_JSON)
    statement = f"SELECT id, {columns} FROM items WHERE added <= ? ORDER BY id, added"
    try:
        yield from connection.execute(statement, (commit,))
    except sqlite3.DatabaseError as error:
        raise IndexDamagedError(f"the items of the index cannot be read: {error}") from error


def metadata_names(connection: sqlite3.Connection) -> list[str]:
    """Names of the metadata of some thousand images, sorted, as written in filters."""
    some = (
        f"SELECT metadata FROM items WHERE metadata IS NOT NULL AND json_valid(metadata) LIMIT {_LOOKED_AT}"
    )
    try:
        with time_limit(connection, seconds=SECONDS):
            found = connection.execute(
                f"SELECT DISTINCT element.key FROM ({some}) AS some, json_each(some.metadata) AS element"
            ).fetchall()
    except sqlite3.DatabaseError as error:
        raise IndexDamagedError(f"the items of the index cannot be read: {error}") from error
    return names_of(str(name) for (name,) in found)


def names_of(found: Iterable[str]) -> list[str]:
    """Names of metadata, sorted, as written in filters."""
    names = sorted(name for name in found if name != EMBEDDED)
    return [f"{META}.{name}" if _PLAIN.fullmatch(name) else f'{META}."{name}"' for name in names]


def compile_where(text: str) -> Where:
    """Compile a filter.

    Args:
        text: in the language of docs/filters.md.

    Raises:
        WhereError: it is not valid; the message gives the position and what was expected there.
    """
    parser = Parser(text, fields)
    clause = parser.parse()
    return Where(text=text, condition=clause.sql, values=clause.values, fields=frozenset(parser.fields))
