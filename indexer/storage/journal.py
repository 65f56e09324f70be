"""Rollback journals of SQLite, read without SQLite: what a writer left that was killed while it committed.

SQLite rolls such a journal back when a connection that may write opens the file, and deletes any file that the
journal names. A reader writes nothing, so it rolls back a copy in memory; a writer lets SQLite do it once the journal
is known to be harmless. The format: https://www.sqlite.org/fileformat2.html#the_rollback_journal
"""

from __future__ import annotations

MAGIC = bytes.fromhex("d9d505f920a163d7")
"""What a journal begins with, and ends with if it names another file."""
_HEADER = 28
_UNCOUNTED = 2**32 - 1
"""Number of records in a header that was never completed: as many as the file has."""
_LOCK_BYTE = 0x40000000
"""The page with this byte holds no data."""


def rolled_back(content: bytes, journal: bytes) -> bytes:
    """A database of which a commit was cut off, as it was before it."""
    database, place, seen = bytearray(content), 0, set[int]()
    page_size = pages = 0
    while journal[place : place + 8] == MAGIC and len(journal) >= place + _HEADER:
        count, nonce, before, sector, size = (_number(journal, place + 8 + 4 * n) for n in range(5))
        if not place:
            if not _is_size(size, 512, 65_536) or not _is_size(sector, 32, 65_536):
                break
            page_size, sector_size, pages = size, sector, before
            if pages * page_size > len(database):
                break
            del database[pages * page_size :]
        start = place + sector_size
        if count == _UNCOUNTED:
            count = (len(journal) - start) // (page_size + 8)
        for _ in range(count):
            page, data = _number(journal, start), journal[start + 4 : start + 4 + page_size]
            known = _number(journal, start + 4 + page_size)
            place = start = start + page_size + 8
            if page in (0, _LOCK_BYTE // page_size + 1) or known != _checksum(data, nonce):
                return bytes(database)
            if page <= pages and page not in seen:
                seen.add(page)
                database[(page - 1) * page_size : page * page_size] = data
        place = -(-start // sector_size) * sector_size
    return bytes(database)


def _number(content: bytes, place: int) -> int:
    return int.from_bytes(content[place : place + 4], "big")


def _checksum(page: bytes, nonce: int) -> int:
    """Sum of every 200th byte from the end of a page, and the number that its journal chose."""
    return (nonce + sum(page[len(page) - 200 : 0 : -200])) % 2**32


def _is_size(value: int, low: int, high: int) -> bool:
    return low <= value <= high and value & (value - 1) == 0
