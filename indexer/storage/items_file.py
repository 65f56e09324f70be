"""Opens ``items-*.db``: only a file that is as ours are, and without running anything that is in it.

The file may come from a stranger. A reader opens nothing that may write and takes no journal; a writer takes only one
that names no other file. What the file declares is compared with ``SCHEMA`` before a row is read, so that there are no
views, triggers or virtual tables; statements and values have limits.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from llm2clip.common.files import format_bytes, open_regular
from llm2clip.indexer.core.errors import IndexDamagedError, IndexerError, IndexWriteError
from llm2clip.indexer.core.index_paths import is_name
from llm2clip.indexer.storage.items_schema import SCHEMA
from llm2clip.indexer.storage.journal import MAGIC, rolled_back

_PATIENCE = 60.0
"""Seconds to wait for a writer's commit."""
_FOR_NOW = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
    | {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_FULL}
)
"""Error codes of SQLite that do not mean damage."""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT})
"""Those that mean damage even while it is written."""
_MAX_IN_MEMORY = 2**29
"""Largest file that a reader rolls back in memory, in bytes: some two million images."""
_LIMITS = (
    (sqlite3.SQLITE_LIMIT_LENGTH, 2**26),
    (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 2**20),
    (sqlite3.SQLITE_LIMIT_COLUMN, 100),
    (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 0),
)
_STEPS = 1_000_000
"""SQLite instructions between two looks at the time: some ten milliseconds."""
_LEAST_SECONDS, _BYTES_PER_SECOND = 30.0, 1e6
"""Longest time of a statement: pages of a hostile file may be linked so that a scan never ends."""
REPAIR = "Try  llm2clip-index verify --repair, or run the build command again"
"""What to do about a damaged file."""
_HEAD = b"SQLite format 3\0"


class Database(sqlite3.Connection):
    """A connection whose statements have a time limit."""

    seconds = _LEAST_SECONDS
    """Longest time of a statement."""
    _end = 0.0

    def execute(self, statement: str, values: Any = (), /) -> sqlite3.Cursor:  # noqa: ANN401
        """Execute a statement."""
        self._end = time.monotonic() + self.seconds
        return super().execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[Any], /) -> sqlite3.Cursor:
        """Execute a statement with the values of each row."""
        self._end = time.monotonic() + self.seconds
        return super().executemany(statement, rows)

    def is_late(self) -> bool:
        """Whether the time of the statement is over."""
        return time.monotonic() > self._end


@contextmanager
def sqlite(path: Path, *, writing: bool = False) -> Iterator[None]:
    """Turn errors of SQLite into ours."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: of a message about damage
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        said = " ".join(str(error).split())[:200]
        if writing and code not in _DAMAGE and "decode" not in str(error):
            raise IndexWriteError(f"cannot write {path}: {said}") from error
        if code in _FOR_NOW and path.is_file():  # not damage: a build would embed everything again
            raise IndexerError(
                f"{path} cannot be read now: {said}. Nothing was changed: run the command again"
            ) from error
        raise IndexDamagedError(f"{path} is damaged: {said}. {REPAIR}") from error


def connect(path: Path, *, known: bool = False) -> Database:
    """A connection that reads an items file, for any thread; also on read-only media. It can write nothing.

    ``known``: another connection has just read the file, so that it is looked at again only beside a journal, which
    a killed writer may have left.

    Raises:
        IndexDamagedError: the file is missing, or is none of ours.
    """
    size = _check_head(path)
    if known and not os.path.lexists(journal_of(path)):
        with sqlite(path):
            return open_database(path, mode="ro", size=size)
    check_journal(path)
    with sqlite(path):
        db = open_database(path, mode="ro", size=size)
        try:
            _check_schema(db, path)
        except sqlite3.OperationalError as error:
            db.close()
            if not cut_off(error):
                raise
            return connect_rolled_back(path) or connect(path)
        except BaseException:
            db.close()
            raise
        return db


def cut_off(error: sqlite3.OperationalError) -> bool:
    """Whether SQLite refuses to read because a writer was killed while it committed."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_ROLLBACK


def journal_of(path: Path) -> Path:
    """Where SQLite writes the journal of a file."""
    return path.with_name(f"{path.name}-journal")


def check_journal(path: Path) -> bool:
    """Whether a database has a journal beside it; refuses one that no writer of ours leaves.

    Raises:
        IndexDamagedError: the journal is no regular file, names another file, or there is one of another mode.
    """
    for beside in (f"{path}-wal", f"{path}-shm"):
        if os.path.lexists(beside):
            raise IndexDamagedError(
                f"{beside} is no file of an index: delete it if you know how it came there"
            )
    journal = journal_of(path)
    try:
        with open_regular(journal) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - len(MAGIC)))
            if file.read() != MAGIC:
                return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise IndexDamagedError(f"{journal} is no journal: {error.strerror or error}") from error
    raise IndexDamagedError(
        f"{journal} names another file, which SQLite would delete. No writer of an index leaves that: do not use "
        "this index, or delete the journal"
    )


def connect_rolled_back(path: Path) -> Database | None:
    """A connection to a copy in memory of an items file of which a commit was cut off, as it was before that.

    None if a writer rolls it back now.
    """
    check_journal(path)
    with suppress(FileNotFoundError), open_regular(path) as file, open_regular(journal_of(path)) as journal:
        sizes = [each.seek(0, 2) for each in (file, journal)]
        if sum(sizes) > _MAX_IN_MEMORY:
            raise IndexerError(
                f"{path} was left half written by a killed process, and is too large ({format_bytes(sizes[0])}) to be "
                "read as it was: run  llm2clip-index verify --repair  once"
            )
        file.seek(0)
        journal.seek(0)
        content = rolled_back(file.read(), journal.read())
        if os.path.samestat(os.fstat(journal.fileno()), os.lstat(journal_of(path))):
            return _in_memory(content, path)
    return None


def _in_memory(content: bytes, path: Path) -> Database:
    options: dict[str, Any] = {"check_same_thread": False, "isolation_level": None, "factory": Database}
    db: Database = sqlite3.connect(":memory:", **options)
    with sqlite(path):
        db.deserialize(content)
        _restrict(db, len(content))
        _check_schema(db, path)
    return db


def connect_for_writing(path: Path) -> Database:
    """A connection that may write an items file, under the lock of its index; SQLite rolls back what was cut off.

    Raises:
        IndexDamagedError: the file is missing, or is none of ours.
        IndexWriteError: it cannot be written.
    """
    size = _check_head(path)
    check_journal(path)
    with sqlite(path, writing=True):
        db = open_database(path, mode="rw", size=size)
        try:
            _check_schema(db, path)
        except BaseException:
            db.close()
            raise
        return db


def open_database(path: Path, *, mode: str, size: int = 0) -> Database:
    """A connection without implicit transactions, for any thread. Modes: ``ro``, ``rw``."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    options: dict[str, Any] = {"check_same_thread": False, "isolation_level": None, "factory": Database}
    db: Database = sqlite3.connect(uri, uri=True, timeout=_PATIENCE, **options)
    _restrict(db, size)
    return db


def settle(path: Path) -> None:
    """Let SQLite roll back what a killed writer left, under the lock of the index."""
    if journal_of(path).exists():
        connect_for_writing(path).close()


def query(path: Path, statement: str, *values: str | int | bytes) -> list[Any]:
    """The rows of a statement on an items file, on a connection of its own."""
    with closing(connect(path)) as db:
        return run(db, path, statement, values)


def run(db: sqlite3.Connection, path: Path, statement: str, values: Sequence[str | int | bytes]) -> list[Any]:
    """The rows of a statement."""
    with sqlite(path):
        return db.execute(statement, values).fetchall()


def meta_of(rows: Iterable[tuple[object, object]]) -> dict[str, str]:
    """Rows of ``meta`` as text: SQLite stores any type in any column."""
    return {str(key): str(value) for key, value in rows}


def number_in(meta: Mapping[str, str], name: str, *, path: Path) -> int:
    """A number of ``meta``; 0 if it is not there.

    Raises:
        IndexDamagedError: it is no number.
    """
    if not re.fullmatch(r"\d{1,18}", text := meta.get(name, "0"), re.ASCII):
        raise IndexDamagedError(f"{path} is damaged: its {name} is {text!r:.40}. {REPAIR}")
    return int(text)


def unfinished_files(path: Path) -> frozenset[str]:
    """Names of the vector files that the unfinished vectors of an items file lie in."""
    with closing(connect(path)) as db:
        found = run(db, path, "SELECT DISTINCT file FROM unfinished", ())
    return frozenset(name for (name,) in found if is_name(name, "vectors"))


def count_all(path: Path) -> int:
    """Number of items of every generation and of unfinished vectors."""
    # With conditions: without, SQLite counts in one step, which no time limit ends.
    items, others = (
        "SELECT count(*) FROM items WHERE added > 0",
        "SELECT count(*) FROM unfinished WHERE row >= 0",
    )
    return int(query(path, f"SELECT ({items}) + ({others})")[0][0])


def _check_head(path: Path) -> int:
    """Refuse what is no SQLite file with a rollback journal; returns its size in bytes."""
    try:
        with open_regular(path) as file:
            head = file.read(100)
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise IndexDamagedError(
            f"{path} is missing: the index is incomplete. Run the build command again"
        ) from None
    except OSError as error:
        if isinstance(error, PermissionError):
            raise IndexerError(f"{path} cannot be read: {error.strerror}") from error
        raise IndexDamagedError(f"{path} is damaged: {error.strerror or error}") from error
    # Bytes 18 and 19: written and read with a rollback journal, not with one that readers would have to write.
    if head[:16] != _HEAD or head[18:20] != b"\1\1":
        raise IndexDamagedError(
            f"{path} is damaged: file is not a database of ours. Run the build command again"
        )
    return size


def _restrict(db: Database, size: int) -> None:
    """Switch off what an items file has no use for, before anything of it is read."""
    for limit, value in _LIMITS:
        db.setlimit(limit, value)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
        db.execute(f"PRAGMA {pragma}")
    db.seconds = _LEAST_SECONDS + size / _BYTES_PER_SECOND
    db.set_progress_handler(db.is_late, _STEPS)


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    found = {
        (str(kind), str(name), _plain(str(text)))
        for kind, name, text in db.execute("SELECT type, name, sql FROM sqlite_schema LIMIT 100")
        if not str(name).startswith("sqlite_stat")
    }
    if found != _expected():
        odd = sorted(f"{kind} {name}" for kind, name, _ in found ^ _expected())
        raise IndexDamagedError(
            f"{path} is damaged: it does not have the tables of an index (differs in {odd[0][:80]}). {REPAIR}"
        )


@cache
def _expected() -> frozenset[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        rows = db.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()
    return frozenset((kind, name, _plain(text)) for kind, name, text in rows)


@lru_cache(maxsize=32)
def _plain(statement: str) -> str:
    """A statement without comments and with single spaces."""
    return " ".join(re.sub(r"--[^\n]*", "", statement).split())
