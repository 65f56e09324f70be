"""Writing ``items-*.db``: rows that only the next manifest makes visible, and taking back those of a dead writer."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm2clip.indexer.storage.items_reader import ERROR, IN, ITEM, NEVER, SCHEMA, ErrorRow, ItemRow, sqlite

MODULUS = 2**63
"""Checksums of rows and their sums are taken modulo this."""
_CACHE_KIB = 65_536
_MARKS = ", ".join("?" * (len(ItemRow._fields) + 2))


def row_checksum(row: ItemRow) -> int:
    """Checksum of a row: the first 63 bits of the BLAKE2b of its columns as JSON, the hash in hexadecimal."""
    content = json.dumps([*row[:8], row.hash.hex(), *row[9:]], ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class ItemsWriter:
    """Writes rows of one generation. They are safe from a killed process after ``commit``.

    Args:
        path: the file; made with ``meta`` if that is given, and must exist otherwise.
        generation: the one that is being written.
        meta: what the index is.

    Raises:
        IndexWriteError: the file cannot be made or written.
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
            # Readers are locked out from the first page that is written before a commit until the commit.
            self.db.execute("PRAGMA cache_spill = OFF")
            if meta is not None:
                self.db.executescript(f"BEGIN;{SCHEMA}")
                self.db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                self.db.execute("COMMIT")

    def begin(self) -> None:
        """Begin a transaction if there is none."""
        with sqlite(self.path, writing=True):
            if not self.db.in_transaction:
                self.db.execute("BEGIN")

    def append(
        self, items: Sequence[ItemRow], errors: Sequence[ErrorRow], *, again: Sequence[int] = ()
    ) -> int:
        """Write rows of both tables, whose keys have to be removed first.

        Args:
            items: rows of ``items``.
            errors: rows of ``errors``.
            again: those of the ids that had an item before.

        Returns:
            The sum of the checksums of the items.

        Raises:
            IndexWriteError: the disk is full, or worse.
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
        """Take items and errors of some keys away.

        Returns:
            (id, key) of each item that was there, and the sum of their checksums.
        """
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
        """Take items away; returns how many were there, and the sum of their checksums."""
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

    def forget(self, ids: Sequence[int]) -> None:
        """Forget the content of items that were removed."""
        self.begin()
        with sqlite(self.path, writing=True):
            self.db.execute(
                f"UPDATE items SET hash = x'' WHERE id IN {IN} AND removed < {NEVER}", (json.dumps(ids),)
            )

    def recount(self) -> tuple[int, int]:
        """How many items there are, and the sum of their checksums, as of what was written."""
        with sqlite(self.path):
            checksums = self.db.execute(f"SELECT checksum FROM items WHERE removed = {NEVER}").fetchall()
        return len(checksums), sum(checksum for (checksum,) in checksums) % MODULUS

    def count_bad(self) -> int:
        """How many images could not be read, as of what was written."""
        with sqlite(self.path):
            statement = (
                f"SELECT count(*) FROM errors WHERE stage NOT IN ('sidecar', 'removed') AND removed = {NEVER}"
            )
            return int(self.db.execute(statement).fetchone()[0])

    def set_meta(self, name: str, value: str) -> None:
        """Write an entry of ``meta``."""
        self.begin()
        with sqlite(self.path, writing=True):
            self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def commit(self) -> None:
        """Make what was written last."""
        with sqlite(self.path, writing=True):
            if not self._closed and self.db.in_transaction:
                self.db.execute("COMMIT")

    def close(self) -> None:
        """Close the file; what was not committed is dropped."""
        self._closed = True
        self.db.close()


def drop_uncommitted(writer: ItemsWriter, *, generation: int, rows: int) -> int:
    """Take back what writers after ``generation`` wrote and never committed; returns how many items that were.

    Args:
        writer: of the items file.
        generation: the one that is committed; 0 if none is.
        rows: how many vectors it has.
    """
    db = writer.db
    touched = f"SELECT id FROM items WHERE removed < {NEVER} AND removed > ?"
    writer.begin()
    with sqlite(writer.path, writing=True):
        count = int(db.execute("SELECT count(*) FROM items WHERE id >= ?", (rows,)).fetchone()[0])
        db.execute("DELETE FROM items WHERE id >= ?", (rows,))
        db.execute(f"DELETE FROM items WHERE added > ? AND id IN ({touched})", (generation, generation))
        db.execute(
            f"UPDATE items SET removed = {NEVER} WHERE removed < {NEVER} AND removed > ?", (generation,)
        )
        db.execute("DELETE FROM errors WHERE added > ?", (generation,))
        db.execute(
            f"UPDATE errors SET removed = {NEVER} WHERE removed < {NEVER} AND removed > ?", (generation,)
        )
    return count
