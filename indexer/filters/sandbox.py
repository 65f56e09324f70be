"""A read-only connection to the items of an index that runs nothing but filters.

The second line of defence after compiling filters with bound values: SQLite's authorizer denies every table, column and
function that filters do not need, and statements have a time limit.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llm2clip.indexer.filters.fields import COLUMNS, GLOB, LIKE, NFC
from llm2clip.indexer.filters.patterns import folded, glob_matcher, like_matcher, normal, text_of

VERSIONS = frozenset({"added", "removed"})
"""Columns with the generations of a row."""
REPAIRED = "llm2clip_json"
"""Name of the SQL function that makes metadata JSON which Python reads and SQLite does not, such as NaN."""
_FUNCTIONS = frozenset(
    {"coalesce", "count", "glob", "hex", "json_extract", "json_type", "json_valid", "length", "like", "lower"}
    | {"nullif", GLOB, LIKE, NFC, REPAIRED}
)
_JSON_COLUMNS = frozenset({"atom", "json", "key", "root", ""})
_STEPS = 20_000
"""SQLite instructions between two checks of the time limit: a few hundred microseconds without functions."""
_LONG = 1_000
"""Characters of a text that is worth a check of its own."""


def guard(connection: sqlite3.Connection) -> None:
    """Restrict a connection to the items of an index to what filters need."""
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.create_function(REPAIRED, 1, _repaired, deterministic=True)
    connection.create_function(NFC, 1, _normal, deterministic=True)
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

    def text(value: object) -> str:
        found = text_of(value)
        if len(found) > _LONG and time.monotonic() > end:
            connection.interrupt()
        return found

    def matched(matcher: Callable[[str], Callable[[str], bool]], prepared: Callable[[str], str]) -> Matched:
        return lambda pattern, value: None if value is None else matcher(pattern)(prepared(text(value)))

    connection.create_function(LIKE, 2, matched(like_matcher, folded), deterministic=True)
    connection.create_function(GLOB, 2, matched(glob_matcher, normal), deterministic=True)
    connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)


Matched = Callable[[str, object], bool | None]
"""Whether a value matches a pattern; None without a value."""


def _normal(value: str | bytes | float | None) -> str | bytes | float | None:
    return normal(value) if isinstance(value, str) else value


def _repaired(metadata: str | None) -> str | None:
    """JSON without NaN and infinite numbers, which become null; None if it is no JSON at all."""
    if metadata is None:
        return None
    try:
        return json.dumps(json.loads(metadata, parse_constant=lambda _: None), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
