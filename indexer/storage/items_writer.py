"""Write ``items-*.db``: rows that the next manifest makes visible, and the roll-back of those of a killed writer."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm2clip.common.files import create_new
from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.storage.items_file import (
    REPAIR,
    connect_for_writing,
    meta_of,
    number_in,
    open_database,
    sqlite,
)
from llm2clip.indexer.storage.items_reader import (
    ERROR,
    IN,
    ITEM,
    NOT_BAD,
    ErrorRow,
    ItemRow,
    any_text,
    has_error_types,
    has_types,
    parts,
)
from llm2clip.indexer.storage.items_schema import NEVER, SCHEMA
from llm2clip.indexer.storage.vector_segments import SEGMENT_ROWS

MODULUS = 2**63
"""Checksums of rows and their sums are taken modulo this."""
_CACHE_KIB = 65_536
_SUMS = ("lifetimes", "errors")
"""Entries of ``meta``: see ``committed_sum``."""
UNFINISHED = "key, size, mtime_ns, hash, width, height, file, row"
"""Columns of ``unfinished`` after its source."""
VECTOR_PLACE = f"printf('vectors-%05d-%05d.npy', ?, (id - ?) / {SEGMENT_ROWS}), (id - ?) % {SEGMENT_ROWS}"
"""File and row of the vector of an id. Parameters: the generation that wrote it, twice the id of its first vector."""
_MARKS = ", ".join("?" * (len(ItemRow._fields) + 2))


def row_checksum(row: ItemRow) -> int:
    """Checksum of a row: the first 63 bits of the BLAKE2b of its columns as JSON, the hash in hexadecimal."""
    return _checksum([*row[:8], row.hash.hex(), *row[9:]])


def is_intact(row: ItemRow, checksum: object) -> bool:
    """Whether the values of a row are those that its checksum was made of."""
    return has_types(row) and row_checksum(row) == checksum


def lifetime_checksum(id: int, added: int, removed: int) -> int:
    """Checksum of the generations of a row, of the same kind."""
    return _checksum([id, added, removed])


def sum_errors(db: sqlite3.Connection, generation: int) -> int:
    """Sum of the checksums of all errors as of a generation, whatever their values are; modulo ``MODULUS``."""
    ends = f"CASE WHEN typeof(removed) = 'integer' AND removed > ? THEN {NEVER} ELSE removed END"
    before, db.text_factory = db.text_factory, any_text
    try:
        rows = db.execute(
            f"SELECT {ERROR}, added, {ends} FROM errors WHERE added <= ?", (generation, generation)
        )
        return sum(_checksum(list(row)) for row in rows) % MODULUS
    finally:
        db.text_factory = before


def _checksum(values: list[Any]) -> int:
    content = json.dumps(
        values, ensure_ascii=False, separators=(",", ":"), default=repr
    )  # a blob, if altered
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class ItemsWriter:
    """Writes rows of one generation. After ``commit`` they survive a killed process.

    The file is created with ``meta`` if that is given, and must exist otherwise.
    """

    def __init__(self, path: Path, *, generation: int, meta: Mapping[str, str] | None = None) -> None:
        self.path, self.generation = path, generation
        self._closed = False
        self._lifetimes = 0
        """Sum of the checksums of the generations of all rows."""
        self._errors_off = 0
        """By how much the sum of the checksums of all errors is not that committed: 0, unless they were altered."""
        if meta is not None:
            create_new(path).close()
        with sqlite(path, writing=True):
            self.db = connect_for_writing(path) if meta is None else open_database(path, mode="rw")
            self.db.execute("PRAGMA synchronous = FULL")
            self.db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            # A page written before the commit would lock readers out until the commit.
            self.db.execute("PRAGMA cache_spill = OFF")
            if meta is not None:
                self.db.executescript(f"BEGIN;{SCHEMA}")
                self.db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                self.db.execute("COMMIT")

    def _write(self, statement: str, *values: str | int) -> list[Any]:
        """Execute a statement in an SQLite transaction, which is begun if there is none."""
        with sqlite(self.path, writing=True):
            if not self.db.in_transaction:
                self.db.execute("BEGIN")
            return self.db.execute(statement, values).fetchall()

    def _write_rows(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement with the values of each row, likewise."""
        with sqlite(self.path, writing=True):
            if not self.db.in_transaction:
                self.db.execute("BEGIN")
            self.db.executemany(statement, rows)

    def append(
        self, items: Sequence[ItemRow], errors: Iterable[ErrorRow], *, again: Sequence[int] = ()
    ) -> int:
        """Write rows of both tables, whose keys were removed first; returns the sum of the items' checksums.

        ``again`` are ids that had an item before.
        """
        now = self.generation
        checksums = [row_checksum(item) for item in items]
        for part in map(json.dumps, parts(again)):
            gone = self._write(
                f"SELECT id, added, removed FROM items WHERE added = ? AND id IN {IN}", now, part
            )
            self._lifetimes -= sum(lifetime_checksum(*row) for row in gone)
        self._lifetimes += sum(lifetime_checksum(item.id, now, NEVER) for item in items)
        self._write_rows("DELETE FROM items WHERE id = ? AND added = ?", ((id, now) for id in again))
        self._write_rows(
            f"INSERT INTO items ({ITEM}, added, checksum) VALUES ({_MARKS})",
            ((*item, now, checksum) for item, checksum in zip(items, checksums, strict=True)),
        )
        self._write_rows(
            f"INSERT OR REPLACE INTO errors ({ERROR}, added) VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((*error, now) for error in errors),
        )
        return sum(checksums)

    def remove_keys(self, keys: Sequence[str], *, source: int) -> tuple[set[str], int]:
        """Remove items and errors of some keys; returns the keys of the items, and the sum of their checksums."""
        where = f"WHERE source = ? AND key IN {IN} AND removed = {NEVER}"
        values = (source, json.dumps(keys))
        gone = self._write(f"SELECT id, added, checksum, key FROM items {where}", *values)
        for table in ("items", "errors"):
            self._write(f"UPDATE {table} SET removed = ? {where}", self.generation, *values)
        return {row[3] for row in gone}, self._ended(row[:3] for row in gone)

    def remove_ids(self, ids: Sequence[int]) -> tuple[int, int]:
        """Remove items; returns how many were there, and the sum of their checksums."""
        removed = checksum = 0
        where = f"WHERE id IN {IN} AND removed = {NEVER}"
        for part in map(json.dumps, parts(ids)):
            gone = self._write(f"SELECT id, added, checksum FROM items {where}", part)
            self._write(f"UPDATE items SET removed = ? {where}", self.generation, part)
            removed += len(gone)
            checksum += self._ended(gone)
        return removed, checksum

    def revert(self, generation: int) -> tuple[list[str], list[str], int]:
        """Show items and errors as they were before a generation, the last that was committed.

        Returns:
            The keys that came back, those that went, and what to add to the sum of the checksums. Items whose hash was
            cleared stay away.
        """
        lasting, ended = f"added = ? AND removed = {NEVER}", "added < ? AND removed = ?"
        gone = self._write(f"SELECT id, added, checksum, key FROM items WHERE {lasting}", generation)
        back = self._write(
            f"SELECT id, checksum, key FROM items WHERE {ended} AND length(hash)", generation, generation
        )
        for table, columns, usable in (
            ("items", f"{ITEM}, checksum", "AND length(hash)"),
            ("errors", ERROR, ""),
        ):
            self._write(f"UPDATE {table} SET removed = ? WHERE {lasting}", self.generation, generation)
            self._write(
                f"INSERT INTO {table} ({columns}, added) SELECT {columns}, ? FROM {table} WHERE {ended} {usable}",
                *(self.generation, generation, generation),
            )
        checksum = sum(row[1] for row in back) - self._ended(row[:3] for row in gone)
        self._lifetimes += sum(lifetime_checksum(row[0], self.generation, NEVER) for row in back)
        return [row[2] for row in back], [row[3] for row in gone], checksum

    def _ended(self, gone: Iterable[tuple[int, int, int]]) -> int:
        """Count rows (id, added, checksum) as removed; returns the sum of their checksums."""
        total = 0
        for id, added, checksum in gone:
            total += checksum
            self._lifetimes += lifetime_checksum(id, added, self.generation) - lifetime_checksum(
                id, added, NEVER
            )
        return total

    def add_tombstones(self, ids: Iterable[int]) -> None:
        """Write rows of removed items for vectors that have none."""
        now = self.generation
        rows = [ItemRow(id, 0, "", None, None, 0, 0, None, b"", 0, 0, None, None) for id in ids]
        self._write_rows(
            f"INSERT INTO items ({ITEM}, added, removed, checksum) VALUES ({_MARKS}, ?)",
            ((*row, now, now, row_checksum(row)) for row in rows),
        )
        self._lifetimes += sum(lifetime_checksum(row.id, now, now) for row in rows)

    def clear_hashes(self, ids: Sequence[int]) -> None:
        """Forget the content hashes of removed items."""
        for part in map(json.dumps, parts(ids)):
            self._write(f"UPDATE items SET hash = x'' WHERE id IN {IN} AND removed < {NEVER}", part)

    def repair_generations(self, *, rows: int) -> tuple[int, list[int]]:
        """Restore generations that no row of this committed generation can have, where nothing else is open.

        Rows of ids without any of the ``rows`` vectors are deleted. Returns how many rows were restored or deleted, and
        the ids of those that are there now and may have been removed.
        """
        now, unknown = self.generation, list[int]()
        gone = self._write("DELETE FROM items WHERE id NOT BETWEEN 0 AND ? RETURNING id", rows - 1)
        found = self._write(
            "SELECT id, added, removed FROM items WHERE typeof(added) != 'integer' OR typeof(removed) != 'integer' "
            f"OR added NOT BETWEEN 1 AND ? OR (removed != {NEVER} AND removed NOT BETWEEN added AND ?)",
            *(now, now),
        )
        for id, added, removed in found:
            ends = removed if isinstance(removed, int) else NEVER
            if not 0 < ends <= now:  # one flipped bit from never, or else unknown
                if (ends ^ NEVER).bit_count() > 1:
                    unknown.append(id)
                ends = NEVER
            begins = added if isinstance(added, int) and 0 < added <= min(ends, now) else min(ends, now)
            change = "items SET added = ?, removed = ? WHERE id = ? AND added = ?"
            try:
                self._write(f"UPDATE {change}", begins, ends, id, added)
            except IndexDamagedError:  # its key, or its place, is taken by a newer row
                self._write(f"UPDATE OR REPLACE {change}", begins, now, id, added)
        self.commit()
        return len(found) + len(gone), unknown

    def repair_errors(self, *, sources: int) -> int:
        """Delete errors that there cannot be in this committed generation, where nothing else is open; how many.

        Those that end in a generation to come are there again.
        """
        now = self.generation
        self._write(
            f"UPDATE OR IGNORE errors SET removed = {NEVER} WHERE removed > ? AND removed < {NEVER}", now
        )
        with sqlite(self.path):
            self.db.text_factory = any_text
            rows = self.db.execute(
                f"SELECT {ERROR}, added, removed, CAST(key AS BLOB) FROM errors"
            ).fetchall()
            self.db.text_factory = str
        odd = [
            (key, row[0], added)
            for *row, added, removed, key in rows
            if not (has_error_types(row) and type(added) is type(removed) is int)
            or not (0 <= row[0] < sources and 0 < added <= now and added <= removed)
        ]
        self._write_rows("DELETE FROM errors WHERE CAST(key AS BLOB) = ? AND source IS ? AND added IS ?", odd)
        self.commit()
        return len(odd)

    def recount(self) -> tuple[int, int]:
        """Number of items, and the sum of their checksums, uncommitted rows included."""
        self._sum_lifetimes()
        self._errors_off = 0
        with sqlite(self.path):
            checksums = self.db.execute(f"SELECT checksum FROM items WHERE removed = {NEVER}").fetchall()
        return len(checksums), sum(checksum for (checksum,) in checksums) % MODULUS

    def count_bad(self) -> int:
        """Number of images that could not be read, uncommitted rows included."""
        with sqlite(self.path):
            statement = f"SELECT count(*) FROM errors WHERE stage NOT IN {NOT_BAD} AND removed = {NEVER}"
            return int(self.db.execute(statement).fetchone()[0])

    def load_sums(self, generation: int) -> None:
        """Go on from the committed sums of a generation; of an index that has none, every row is read."""
        lifetimes, errors = (self._committed(name, generation) for name in _SUMS)
        if lifetimes is None:
            self._sum_lifetimes()
        else:
            self._lifetimes = int(lifetimes, 16)
        self._errors_off = int(errors, 16) - self._sum_errors() if errors is not None else 0

    def _sum_lifetimes(self) -> None:
        with sqlite(self.path):
            rows = self.db.execute("SELECT id, added, removed FROM items")
            self._lifetimes = sum(lifetime_checksum(*row) for row in rows)

    def _sum_errors(self) -> int:
        with sqlite(self.path):
            return sum_errors(self.db, self.generation)

    def _committed(self, name: str, generation: int) -> str | None:
        with sqlite(self.path):
            meta = meta_of(self.db.execute("SELECT key, value FROM meta"))
        return committed_sum(meta, name, generation=generation)

    def commit_generation(self, base: int) -> None:
        """Write the generation, and what verifying needs of its rows; ``base`` is the one before. Not yet committed."""
        entries = {"generation": str(self.generation)}
        now = self._lifetimes, self._sum_errors() + self._errors_off
        for name, total in zip(_SUMS, now, strict=True):
            entries[name] = f"{self.generation} {total % MODULUS:016x}"
            if (before := self._committed(name, base)) is not None:
                entries[f"{name}_before"] = f"{base} {before}"
        self.set_meta(entries)

    def set_meta(self, entries: Mapping[str, str]) -> None:
        """Write entries of ``meta``."""
        self._write_rows("INSERT OR REPLACE INTO meta VALUES (?, ?)", entries.items())

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

        ``generation`` is 0 if none was committed; it has ``rows`` vectors. Nothing else may be open in the file.
        """
        with sqlite(self.path):
            meta = meta_of(self.db.execute("SELECT key, value FROM meta"))
        writer = number_in(meta, "writing", path=self.path)
        if writer > generation:
            for number, source in enumerate(_sources(meta, self.path)):
                self._write(
                    f"INSERT OR REPLACE INTO unfinished (source, {UNFINISHED}) "
                    f"SELECT ?, key, size, mtime_ns, hash, width, height, {VECTOR_PLACE} "
                    f"FROM items WHERE id >= ? AND source = ? AND removed = {NEVER}",
                    *(source_text(source), writer, rows, rows, rows, number),
                )
        # New rows of old ids: their items changed, or an undo brought back what this generation had removed.
        touched = f"SELECT id FROM items WHERE removed < {NEVER} AND removed >= ?"
        self._write("DELETE FROM items WHERE id >= ?", rows)
        self._write(f"DELETE FROM items WHERE added > ? AND id IN ({touched})", generation, generation)
        self._write("DELETE FROM errors WHERE added > ?", generation)
        for table in ("items", "errors"):
            self._write(
                f"UPDATE {table} SET removed = {NEVER} WHERE removed < {NEVER} AND removed > ?", generation
            )
        entries = {"writing": str(generation)}
        for name in _SUMS:
            if (known := committed_sum(meta, name, generation=generation)) is not None:
                entries[name] = f"{generation} {known}"
        self.set_meta(entries)
        self.commit()

    def prune(self) -> None:
        """Forget uncommitted vectors of images that are in the index now."""
        self._write(
            "DELETE FROM unfinished WHERE EXISTS "
            f"(SELECT 1 FROM items WHERE items.hash = unfinished.hash AND items.removed = {NEVER})"
        )
        self.commit()


def committed_sum(meta: Mapping[str, str], name: str, *, generation: int) -> str | None:
    """``lifetimes`` or ``errors`` of ``meta`` as of a generation, hexadecimal; None: not known.

    They are sums over all rows: of the checksums of the generations of the items, and of those of the errors.
    """
    for entry in (name, f"{name}_before"):
        number, _, known = meta.get(entry, "").partition(" ")
        if number == str(generation) and re.fullmatch("[0-9a-f]{16}", known):
            return known
    return None


def _sources(meta: Mapping[str, str], path: Path) -> list[Mapping[str, str]]:
    """The sources that the last writer announced."""
    with suppress(ValueError, RecursionError):
        found = json.loads(meta.get("sources", "[]"))
        if isinstance(found, list) and all(isinstance(source, dict) for source in found):
            return found
    raise IndexDamagedError(f"{path} is damaged: it does not say what was indexed. {REPAIR}")


def source_text(source: Mapping[str, str]) -> str:
    """A source as it stands in ``unfinished``: without the spelling that the user chose."""
    return json.dumps({**source, "spec": ""}, sort_keys=True)
