"""One pass over a source: what changed since the last commit, kept in a temporary file until it is read."""

from __future__ import annotations

import pickle
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from llm2clip.indexer.core.errors import IndexWriteError
from llm2clip.indexer.records.record import Corpus, Record
from llm2clip.indexer.storage.items_reader import ErrorRow, ItemsReader
from llm2clip.indexer.storage.items_schema import NEVER

CHUNK = 512
"""Records that are looked up together, and written together at most."""
_IN_MEMORY = 16 * 2**20
_PARTS = re.compile("[/#]")


class Spool:
    """Records in a temporary file, in memory while they are few; read in the order in which they were written."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115

    def write(self, records: Sequence[Record]) -> None:
        """Append records."""
        try:
            pickle.dump(records, self._file, protocol=pickle.HIGHEST_PROTOCOL)
        except OSError as error:
            raise IndexWriteError(
                f"cannot write the list of images to {tempfile.gettempdir()}: {error.strerror or error}. Make room, "
                "or set TMPDIR to another place"
            ) from error

    def __iter__(self) -> Iterator[Record]:
        self._file.seek(0)
        while True:
            try:
                records = pickle.load(self._file)
            except EOFError:
                return
            yield from records

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What one pass over a source found."""

    total: int
    """Images that it has."""
    unchanged: int
    """Of them, those that the index has as they are now."""
    changed: Spool
    """The others, with captions."""
    gone: Sequence[int] = ()
    """Ids of items that it no longer has."""
    gone_errors: Sequence[str] = ()
    """Keys that could not be read and that it no longer has."""
    noted: int = 0
    """Of the changed images, those with something wrong about their captions or metadata."""
    kept: int = 0
    """Items that it did not list because their folder or file cannot be read now."""

    @property
    def changes(self) -> int:
        """Images that are new or changed."""
        return self.total - self.unchanged

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.changes or self.gone or self.gone_errors)


def list_source(
    corpus: Corpus,
    committed: CommittedSource | None,
    *,
    delete_missing: bool,
    progress: Callable[[int], None],
) -> Listing:
    """List a source once, and compare it with the committed index. Captions are read only of images that changed.

    With ``delete_missing``, images that the source does not list are gone.
    """
    total = unchanged = noted = 0
    unread: set[str] = set()
    spool = Spool()
    try:
        for chunk in chunks(corpus.listing()):
            total += len(chunk)
            unread.update(record.key for record in chunk if record.problem is not None)
            same = committed.unchanged(chunk) if committed is not None else [False] * len(chunk)
            if not all(same):
                changed = [record.described() for record, known in zip(chunk, same, strict=True) if not known]
                noted += sum(record.note is not None for record in changed)
                spool.write(changed)
            unchanged += sum(same)
            progress(total)
    except BaseException:
        spool.close()
        raise
    listing = Listing(total=total, unchanged=unchanged, changed=spool, noted=noted)
    return committed.compared(listing, unread) if committed is not None and delete_missing else listing


class CommittedSource:
    """What the committed index has of a source; remembers what was listed.

    With ``explicit`` the user names the images: those that were removed by hand come back.
    """

    def __init__(self, items: ItemsReader, *, source: int, rows: int, explicit: bool) -> None:
        self._items, self._source, self._explicit = items, source, explicit
        self._ids = np.zeros(rows, dtype=np.bool_)
        self._errors: set[str] = set()

    def unchanged(self, records: Sequence[Record]) -> list[bool]:
        """Whether the index has each record as it is now, captions and errors included."""
        items, errors = self._items.known([record.key for record in records], source=self._source)
        self._ids[[item.id for item in items.values()]] = True
        self._errors.update(errors)
        answers: list[bool] = []
        for record in records:
            item, error = items.get(record.key), errors.get(record.key)
            if error is not None and error.stage == "removed":
                answers.append(not self._explicit)
            elif record.problem is not None:
                answers.append(error is not None and error.reason == record.problem)
            elif item is not None:
                now = (record.size or 0, record.mtime_ns or 0, record.sidecars, record.locator)
                answers.append(now == (item.size, item.mtime_ns, item.sidecars, item.locator))
            else:
                answers.append(error is not None and same_error(record, error))
        return answers

    def compared(self, listing: Listing, unread: AbstractSet[str]) -> Listing:
        """The listing with what the index has and the source no longer lists."""
        where = f"WHERE source = ? AND removed = {NEVER}"
        ids = np.array(
            [id for (id,) in self._items.rows(f"SELECT id FROM items {where}", self._source)], np.int64
        )
        missing = ids[~self._ids[ids]].tolist()
        gone = missing
        if unread:  # not what lies in a folder or file that cannot be read now
            named = self._items.of_ids("id, key", missing)
            gone = [id for id, key in named if unread.isdisjoint(_parents(key))]
        errors = self._items.rows(f"SELECT key FROM errors {where}", self._source)
        return replace(
            listing,
            gone=gone,
            gone_errors=[key for (key,) in errors if key not in self._errors],
            kept=len(missing) - len(gone),
        )


def _parents(key: str) -> Iterator[str]:
    """The folders and the container that a key lies in."""
    return (key[: match.start()] for match in _PARTS.finditer(key))


def same_error(record: Record, error: ErrorRow) -> bool:
    """Whether an image that could be read and not decoded is unchanged; other errors may have gone by themselves."""
    known = (error.stage, error.size, error.mtime_ns)
    return record.problem is None and known == ("decode", record.size, record.mtime_ns)


def chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in lists of ``CHUNK``."""
    iterator = iter(records)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
