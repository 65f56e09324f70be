"""Write ``items-*.db``: rows that the next manifest makes visible, and the roll-back of those of a killed writer."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm2clip.indexer.storage.items_reader import (
    ERROR,
    IN,
    ITEM,
    NEVER,
    NOT_BAD,
    SCHEMA,
    ErrorRow,
    ItemRow,
    sqlite,
)
from llm2clip.indexer.storage.outcome import Outcome
from llm2clip.indexer.storage.vector_segments import SEGMENT_ROWS

MODULUS = 2**63
"""Checksums of rows and their sums are taken modulo this."""
_CACHE_KIB = 65_536
UNFINISHED = "key, size, mtime_ns, hash, width, height, file, row"
"""Columns of ``unfinished`` after its source."""
VECTOR_PLACE = f"printf('vectors-%05d-%05d.npy', ?, (id - ?) / {SEGMENT_ROWS}), (id - ?) % {SEGMENT_ROWS}"
"""File and row of the vector of an id. Parameters: the generation that wrote it, twice the id of its first vector."""
_MARKS = ", ".join("?" * (len(ItemRow._fields) + 2))


def row_checksum(row: ItemRow) -> int:
    """Checksum of a row: the first 63 bits of the BLAKE2b of its columns as JSON, the hash in hexadecimal."""
    content = json.dumps([*row[:8], row.hash.hex(), *row[9:]], ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class ItemsWriter:
    """Writes rows of one generation. After ``commit`` they survive a killed process.

    The file is created with ``meta`` if that is given, and must exist otherwise.
    """

    def __init__(self, path: Path, *, generation: int, meta: Mapping[str, str] | None = None) -> None:
        self.path, self.generation = path, generation
        self._closed = False
        with sqlite(path, writing=True):
            mode = "rwc" if meta is not None else "rw"
            uri = f"{path.absolute().as_uri()}?mode={mode}"
            self.db = sqlite3.connect(
                uri, uri=True, isolation_level=None, timeout=60.0, check_same_thread=False
            )
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            # A page written before the commit would lock readers out until the commit.
            self.db.execute("PRAGMA cache_spill = OFF")
            if meta is not None:
                self.db.executescript(f"BEGIN;{SCHEMA}")
                self.db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                self.db.execute("COMMIT")

    def begin(self) -> None:
        """Begin an SQLite transaction if there is none."""
        with sqlite(self.path, writing=True):
            if not self.db.in_transaction:
                self.db.execute("BEGIN")

    def append(
        self, items: Sequence[ItemRow], errors: Sequence[ErrorRow], *, again: Sequence[int] = ()
    ) -> int:
        """Write rows of both tables, whose keys have to be removed first; ``again`` are ids that had an item before.

        Returns the sum of the checksums of the items.
        """
        self.begin()
        checksums = [row_checksum(item) for item in items]
        with sqlite(self.path, writing=True):
            self.db.executemany(
                "DELETE FROM items WHERE id = ? AND added = ?", ((id, self.generation) for id in again)
            )
            self.db.executemany(
                f"INSERT INTO items ({ITEM}, added, checksum) VALUES ({_MARKS})",
                ((*item, self.generation, checksum) for item, checksum in zip(items, checksums, strict=True)),
            )
            self.db.executemany(
                f"INSERT OR REPLACE INTO errors ({ERROR}, added) VALUES (?, ?, ?, ?, ?, ?, ?)",
                ((*error, self.generation) for error in errors),
            )
        return sum(checksums)

    def remove_keys(self, keys: Sequence[str], *, source: int) -> tuple[list[tuple[int, str]], int]:
        """Remove items and errors of some keys; returns (id, key) of each item, and the sum of their checksums."""
        self.begin()
        wanted = json.dumps(keys)
        with sqlite(self.path, writing=True):
            gone = self.db.execute(
                f"SELECT id, key, checksum FROM items WHERE source = ? AND key IN {IN} AND removed = {NEVER}",
                (source, wanted),
            ).fetchall()
            self._mark([id for id, _, _ in gone])
            self.db.execute(
                f"UPDATE errors SET removed = ? WHERE source = ? AND key IN {IN} AND removed = {NEVER}",
                (self.generation, source, wanted),
            )
        return [(id, key) for id, key, _ in gone], sum(checksum for _, _, checksum in gone)

    def remove_ids(self, ids: Sequence[int]) -> tuple[int, int]:
        """Remove items; returns how many were there, and the sum of their checksums."""
        self.begin()
        with sqlite(self.path, writing=True):
            gone = self.db.execute(
                f"SELECT id, checksum FROM items WHERE id IN {IN} AND removed = {NEVER}", (json.dumps(ids),)
            ).fetchall()
            self._mark([id for id, _ in gone])
        return len(gone), sum(checksum for _, checksum in gone)

    def _mark(self, ids: Sequence[int]) -> None:
        self.db.execute(
            f"UPDATE items SET removed = ? WHERE id IN {IN} AND removed = {NEVER}",
            (self.generation, json.dumps(ids)),
        )

    def clear_hashes(self, ids: Sequence[int]) -> None:
        """Forget the content hashes of removed items."""
        self.begin()
        with sqlite(self.path, writing=True):
            self.db.execute(
                f"UPDATE items SET hash = x'' WHERE id IN {IN} AND removed < {NEVER}", (json.dumps(ids),)
            )

    def recount(self) -> tuple[int, int]:
        """Number of items, and the sum of their checksums, uncommitted rows included."""
        with sqlite(self.path):
            checksums = self.db.execute(f"SELECT checksum FROM items WHERE removed = {NEVER}").fetchall()
        return len(checksums), sum(checksum for (checksum,) in checksums) % MODULUS

    def count_bad(self) -> int:
        """Number of images that could not be read, uncommitted rows included."""
        with sqlite(self.path):
            statement = f"SELECT count(*) FROM errors WHERE stage NOT IN {NOT_BAD} AND removed = {NEVER}"
            return int(self.db.execute(statement).fetchone()[0])

    def set_meta(self, name: str, value: str) -> None:
        """Write an entry of ``meta``."""
        self.begin()
        with sqlite(self.path, writing=True):
            self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def commit(self) -> None:
        """Commit the SQLite transaction."""
        with sqlite(self.path, writing=True):
            if not self._closed and self.db.in_transaction:
                self.db.execute("COMMIT")

    def close(self) -> None:
        """Close the file; what was not committed is rolled back."""
        self._closed = True
        self.db.close()

    def stash_uncommitted(self, *, generation: int, rows: int) -> None:
        """Roll the file back to a committed generation of so many vectors; note where those of uncommitted rows lie.

        Nothing may be open in it. Generation 0: none is committed.
        """
        with sqlite(self.path):
            meta = dict(self.db.execute("SELECT key, value FROM meta"))
        serial = int(meta.get("writing", "0"))
        self.begin()
        if serial > generation:
            with sqlite(self.path, writing=True):
                for number, source in enumerate(json.loads(meta.get("sources", "[]"))):
                    self.db.execute(
                        f"INSERT OR REPLACE INTO unfinished (source, {UNFINISHED}) "
                        "SELECT ?, key, size, mtime_ns, hash, width, height, "
                        f"{VECTOR_PLACE} FROM items WHERE id >= ? AND source = ? AND removed = {NEVER}",
                        (source_text(source), serial, rows, rows, rows, number),
                    )
        self._drop_uncommitted(generation, rows)
        self.set_meta("writing", str(generation))
        self.commit()

    def _drop_uncommitted(self, generation: int, rows: int) -> None:
        touched = f"SELECT id FROM items WHERE removed < {NEVER} AND removed > ?"
        with sqlite(self.path, writing=True):
            self.db.execute("DELETE FROM items WHERE id >= ?", (rows,))
            self.db.execute(
                f"DELETE FROM items WHERE added > ? AND id IN ({touched})", (generation, generation)
            )
            self.db.execute("DELETE FROM errors WHERE added > ?", (generation,))
            for table in ("items", "errors"):
                self.db.execute(
                    f"UPDATE {table} SET removed = {NEVER} WHERE removed < {NEVER} AND removed > ?",
                    (generation,),
                )

    def prune(self) -> None:
        """Forget uncommitted vectors of images that are in the index now."""
        self.begin()
        with sqlite(self.path, writing=True):
            self.db.execute(
                "DELETE FROM unfinished WHERE EXISTS "
                f"(SELECT 1 FROM items WHERE items.hash = unfinished.hash AND items.removed = {NEVER})"
            )
        self.commit()


def source_text(source: Mapping[str, str]) -> str:
    """A source as it stands in ``unfinished``: without the spelling that the user chose."""
    return json.dumps({**source, "spec": ""}, sort_keys=True)


def item_row(id: int, outcome: Outcome, source: int) -> ItemRow:
    """The row of an image that has a vector."""
    record = outcome.record
    return ItemRow(
        id=id,
        source=source,
        key=record.key,
        path=record.path,
        locator=record.locator,
        size=record.size or 0,
        mtime_ns=record.mtime_ns or 0,
        sidecars=record.sidecars,
        hash=outcome.hash,
        width=outcome.width,
        height=outcome.height,
        caption=record.caption,
        metadata=json.dumps(record.metadata, ensure_ascii=False) if record.metadata else None,
    )


def error_rows(outcome: Outcome, source: int) -> list[ErrorRow]:
    """What was wrong with an image, or with its sidecars."""
    record = outcome.record
    if outcome.reason is not None:
        return [ErrorRow(source, record.key, outcome.stage, outcome.reason, record.size, record.mtime_ns)]
    if record.note is not None:
        return [ErrorRow(source, record.key, "sidecar", record.note, record.size, record.mtime_ns)]
    return []
