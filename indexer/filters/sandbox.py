"""A read-only connection to the items of an index that runs nothing but filters.

The second line of defence after compiling filters with bound values: SQLite's authorizer denies every table, column and
function that filters do not need, and statements have a time limit.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from llm2clip.indexer.filters.fields import COLUMNS, FOLDED, folded

VERSIONS = frozenset({"added", "removed"})
"""Columns with the generations of a row."""
_FUNCTIONS = frozenset(
    {"coalesce", "count", "glob", "hex", "json_extract", "json_type", "json_valid", "like", "lower", "nullif"}
    | {"typeof", FOLDED}
)
_JSON_COLUMNS = frozenset({"atom", "json", "key", "root", ""})
_STEPS = 20_000
"""SQLite instructions between two checks of the time limit: a few hundred microseconds."""


def guard(connection: sqlite3.Connection) -> None:
    """Restrict a connection to the items of an index to what filters need."""
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.create_function(FOLDED, 2, _folded_like, deterministic=True)
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 0),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1_000_000),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 4),
    ):
        connection.setlimit(limit, value)
    connection.execute(
        "SELECT 1 FROM json_each('[]')"
    ).fetchall()  # its table is created, once, by a statement that is denied later
    connection.set_authorizer(_allowed)


def _allowed(
    action: int, first: str | None, second: str | None, _database: str | None, _source: str | None
) -> int:
    if action == sqlite3.SQLITE_SELECT:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ:
        columns = {"items": COLUMNS | VERSIONS | {""}, "json_each": _JSON_COLUMNS}.get(
            first or "", frozenset()
        )
        return sqlite3.SQLITE_OK if second in columns else sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_DENY


@contextmanager
def time_limit(connection: sqlite3.Connection, *, seconds: float) -> Iterator[None]:
    """Interrupt statements after a time, with ``sqlite3.OperationalError: interrupted``."""
    end = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)


def _folded_like(pattern: str, value: object) -> bool | None:
    """``value LIKE pattern`` without case in any script; ``pattern`` is already folded."""
    if value is None:
        return None
    return _compiled(pattern).fullmatch(folded(str(value))) is not None


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A LIKE pattern as a regular expression that takes time linear in pattern and text."""
    parts = [""]
    place = 0
    while place < len(pattern):
        char = pattern[place]
        if char == "\\" and place + 1 < len(pattern):
            place += 1
            parts[-1] += re.escape(pattern[place])
        elif char == "%":
            parts.append("")
        else:
            parts[-1] += "." if char == "_" else re.escape(char)
        place += 1
    if len(parts) == 1:
        return re.compile(parts[0], re.DOTALL)
    # The first match of a piece is as good as any later one, so there is no backtracking.
    between = "".join(f"(?>.*?{part})" for part in parts[1:-1])
    return re.compile(f"{parts[0]}{between}.*{parts[-1]}", re.DOTALL)
