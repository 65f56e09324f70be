"""``Transaction``: one change of an index, written beside the committed generation and committed in one step."""

from __future__ import annotations

import errno
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from llm2clip.common.files import regular_size
from llm2clip.indexer.core.errors import IndexConflictError, IndexDamagedError, IndexWriteError
from llm2clip.indexer.core.index_paths import items_name
from llm2clip.indexer.storage.index_folder import clean, committed_files, next_generation, settle_items
from llm2clip.indexer.storage.items_file import count_all, meta_of, number_in, query, unfinished_files
from llm2clip.indexer.storage.items_reader import ErrorRow, ItemRow
from llm2clip.indexer.storage.items_writer import MODULUS, ItemsWriter
from llm2clip.indexer.storage.lock import check_lock, lock
from llm2clip.indexer.storage.manifest import (
    FileRecord,
    Manifest,
    committed_generation,
    invalid_sources,
    read_manifest,
    software,
    write_manifest,
)
from llm2clip.indexer.storage.outcome import Outcome
from llm2clip.indexer.storage.vector_segments import Rows, SegmentWriter, join_small

CHECKPOINT_SECONDS = 2.0
"""A killed process loses at most the work of this time."""


@contextmanager
def open_for_write(folder: Path) -> Iterator[Manifest]:
    """Lock an index and roll back what a killed writer left; gives its manifest."""
    read_manifest(folder)  # no lock is made where there is no index
    with lock(folder):
        settle_items(folder)
        manifest = read_manifest(folder)
        roll_back(folder, manifest)
        yield manifest


def roll_back(folder: Path, manifest: Manifest) -> None:
    """Undo what a killed writer wrote and did not commit, under the lock of the index. Its vectors can be reused."""
    path = folder / manifest.items_file
    meta = meta_of(query(path, "SELECT key, value FROM meta"))
    generation, written = (number_in(meta, name, path=path) for name in ("generation", "writing"))
    if meta.get("index_id") != manifest.index_id or generation < manifest.generation:
        raise IndexDamagedError(f"{path} belongs to another index. Run the build command again")
    uncommitted = written > manifest.generation
    if uncommitted or unfinished_files(path):
        with writing(folder), closing(ItemsWriter(path, generation=next_generation(folder))) as items:
            if uncommitted:
                items.stash_uncommitted(generation=manifest.generation, rows=manifest.rows)
            items.prune()
    clean(folder, needed=committed_files(folder))


def sources_before(path: Path, generation: int) -> tuple[Mapping[str, str], ...] | None:
    """The sources that an index had before a generation; None if that generation wrote the items anew."""
    found = query(path, "SELECT value FROM meta WHERE key = 'before'")
    try:
        sources = json.loads(found[0][0]).get(str(generation)) if found else None
        if sources is None:
            return None
        if any(invalid_sources(sources)):
            raise ValueError
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise IndexDamagedError(f"{path} is damaged: it does not say what was indexed before") from error
    return tuple(sources)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` into an ``IndexWriteError`` that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error)  # SQLite gives no number
        raise IndexWriteError(
            f"cannot write the index at {folder}: {error.strerror or error}. Work done so far is kept: "
            f"{'free disk space' if full else 'resolve this'} and run the same command again"
        ) from error


class Transaction:
    """Writes one generation of an index; ``begin``, ``create`` and ``resume`` make one.

    As a context manager it closes its files however it ends: after an error what was written is kept for the next
    transaction to reuse, and a new index without any content is deleted. All methods that write raise
    ``IndexWriteError`` when an I/O error occurs (for example a full disk).
    """

    def __init__(self, folder: Path, items: ItemsWriter, *, base: Manifest) -> None:
        self._folder, self._items, self.base = folder, items, base
        self._found = committed_generation(folder)
        self.generation = items.generation
        self.items = base.items
        """Number of items now."""
        self.new = self.changed = self.described = self.lost = 0
        """Keys that are new; of other content; of the same content; and that cannot be read any more."""
        self._checksum = int(base.items_checksum, 16)
        self._checkpointed = time.monotonic()
        with writing(folder):
            self._segments = SegmentWriter(folder, generation=self.generation, dim=base.dim)
            # What the next process needs to reuse what this one may leave uncommitted.
            announced = {
                "writing": self.generation,
                "sources": base.sources,
                "encoder": base.encoder,
                "encoder_source": base.encoder_source,
            }
            items.load_sums(base.generation)
            items.set_meta({name: json.dumps(value) for name, value in announced.items()})
            items.commit()

    @classmethod
    def begin(cls, folder: Path, base: Manifest) -> Transaction:
        """Change a committed index, under its lock and after ``roll_back``."""
        path, generation = folder / base.items_file, next_generation(folder)
        # The sources of before, for ``undo_change``; also of the last commit, in case this one never happens.
        before = {str(generation): read_manifest(folder).sources}
        if (sources := sources_before(path, base.generation)) is not None:
            before[str(base.generation)] = sources
        items = ItemsWriter(path, generation=generation)
        with writing(folder):
            items.set_meta({"before": json.dumps(before)})
        return cls(folder, items, base=base)

    @classmethod
    def create(cls, folder: Path, base: Manifest, *, overwrite: bool = False) -> Transaction:
        """Write an index into new files, under the lock of its folder; uncommitted files there are deleted.

        With ``overwrite`` the index that is committed in the folder must not be reused.
        """
        clean(folder, needed=committed_files(folder))
        generation = next_generation(folder)
        base = replace(base, items_file=items_name(generation))
        meta = {"index_id": base.index_id, "anew": json.dumps(overwrite)}
        with writing(folder):
            items = ItemsWriter(folder / base.items_file, generation=generation, meta=meta)
        return cls(folder, items, base=base)

    @classmethod
    def resume(cls, folder: Path, base: Manifest, items_file: str) -> Transaction:
        """Go on with an index that was created, with ``base``, and never committed; ``items_file`` was begun."""
        items = ItemsWriter(folder / items_file, generation=next_generation(folder))
        try:
            items.stash_uncommitted(generation=0, rows=0)
            index_id = meta_of(query(items.path, "SELECT key, value FROM meta"))["index_id"]
        except BaseException:
            items.close()
            raise
        clean(folder, needed={items_file, *unfinished_files(items.path), *committed_files(folder)})
        return cls(folder, items, base=replace(base, index_id=index_id, items_file=items_file))

    @property
    def rows(self) -> int:
        """Number of vectors now."""
        return self.base.rows + sum(self._segments.rows)

    def append(self, outcomes: Sequence[Outcome], *, source: int = 0) -> None:
        """Write the outcomes of some records in place of what is there under their keys."""
        good = [outcome for outcome in outcomes if outcome.vector is not None]
        fresh = [outcome.vector for outcome in good if outcome.id is None and outcome.vector is not None]
        numbers = count(self.rows)
        with writing(self._folder):
            if fresh:
                self._segments.append(np.stack(fresh))
            keys = [outcome.record.key for outcome in outcomes]
            replaced, checksum = self._items.remove_keys(keys, source=source)
            ids = [next(numbers) if outcome.id is None else outcome.id for outcome in good]
            items = [outcome.item_row(id, source) for id, outcome in zip(ids, good, strict=True)]
            errors = [row for outcome in outcomes for row in outcome.error_rows(source)]
            again = [outcome.id for outcome in good if outcome.id is not None]
            added = self._items.append(items, errors, again=again)
        self._checksum = (self._checksum + added - checksum) % MODULUS
        self.items += len(items) - len(replaced)
        self.described += len(again)
        self.new += sum(item.key not in replaced for item in items)
        self.changed += sum(item.key in replaced for item in items) - len(again)
        self.lost += len(replaced.difference(item.key for item in items))
        if time.monotonic() - self._checkpointed > CHECKPOINT_SECONDS:
            self.checkpoint()

    def copy(self, items: Sequence[ItemRow], vectors: Rows) -> None:
        """Write items of another generation with their vectors, under new ids. Shape: (n, dim), float16."""
        first = self.rows
        with writing(self._folder):
            self._segments.append(vectors)
            added = self._items.append([row._replace(id=first + n) for n, row in enumerate(items)], ())
        self._checksum = (self._checksum + added) % MODULUS
        self.items += len(items)

    def remove(self, ids: Sequence[int]) -> int:
        """Remove items; returns how many were there."""
        with writing(self._folder):
            removed, checksum = self._items.remove_ids(ids)
        self._checksum = (self._checksum - checksum) % MODULUS
        self.items -= removed
        return removed

    def revert(self) -> tuple[list[str], list[str]]:
        """Show the items as they were before the last commit; returns the keys that came back, and those that went."""
        with writing(self._folder):
            back, gone, checksum = self._items.revert(self.base.generation)
        self._checksum = (self._checksum + checksum) % MODULUS
        self.items += len(back) - len(gone)
        return back, gone

    def remove_errors(self, keys: Sequence[str], *, source: int) -> None:
        """Forget that some images could not be read."""
        with writing(self._folder):
            self._items.remove_keys(keys, source=source)

    def add_exclusions(self, rows: Iterable[ErrorRow]) -> None:
        """Note which images a user removed: no update adds them again."""
        with writing(self._folder):
            self._items.append((), rows)

    def clear_hashes(self, ids: Sequence[int]) -> None:
        """Let no other image reuse the vectors of removed items, which are damaged."""
        with writing(self._folder):
            self._items.clear_hashes(ids)

    def add_tombstones(self, ids: Sequence[int]) -> None:
        """Write rows of removed items for vectors that have none, of a damaged index."""
        with writing(self._folder):
            self._items.add_tombstones(ids)

    def recount(self) -> None:
        """Recount the items: the numbers of a damaged index may be wrong."""
        with writing(self._folder):
            self.items, self._checksum = self._items.recount()

    def checkpoint(self) -> None:
        """Flush what was written, so that a later transaction can reuse it."""
        with writing(self._folder):
            self._check_lock()
            self._segments.sync()
            self._items.commit()
        self._checkpointed = time.monotonic()

    def finish(self) -> Manifest:
        """Finish the vectors; returns the manifest to commit, which still has the ANN index of before."""
        with writing(self._folder):
            self._segments.close(finish=True)
            new = [(self._segments.name(n), rows) for n, rows in enumerate(self._segments.rows) if rows]
            segments = join_small(self._folder, self.base, new, generation=self.generation)
        return replace(
            self.base, generation=self.generation, rows=self.rows, items=self.items, segments=segments
        )

    def commit(self, manifest: Manifest) -> Manifest:
        """Make this generation the index, then delete the files that are no longer part of it.

        ``manifest`` is what ``finish`` gave, with the ANN index to use; returns it as it was written. After an error
        the index is what it was before.
        """
        folder, known = self._folder, self.base.files
        with writing(folder):
            self._check_lock()
            self._items.commit_generation(self.base.generation)
            bad = self._items.count_bad()
            self._items.commit()
            names = [each.file for each in (*manifest.segments, manifest.ann) if each is not None]
            manifest = replace(
                manifest,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                written_by=software(),
                bad=bad,
                items_bytes=regular_size(self._items.path),
                items_checksum=f"{self._checksum:016x}",
                files={name: known.get(name) or FileRecord.of(folder / name) for name in names},
            )
            self._check_lock()
            write_manifest(folder, manifest)
        with suppress(IndexWriteError):  # committed; the next transaction prunes
            self._items.prune()
        self._items.close()
        clean(folder, needed=committed_files(folder))
        return manifest

    def _check_lock(self) -> None:
        """Refuse to go on beside another writer, which took this one for dead."""
        check_lock(self._folder)
        if committed_generation(self._folder) != self._found:
            raise IndexConflictError(
                f"another process changed {self._folder} meanwhile: nothing was committed. Run the command again"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # Ctrl-C above all
            with suppress(IndexWriteError, IndexConflictError, sqlite3.Error):
                self.checkpoint()
        self._segments.close(finish=False)
        self._items.close()
        if error is not None:
            self._delete_if_empty()

    def _delete_if_empty(self) -> None:
        """Delete the files of a new index without any content, not even that of an earlier process."""
        path = self._folder / self.base.items_file
        with suppress(IndexDamagedError):
            if not self.base.generation and not count_all(path):
                for name in (path.name, *map(self._segments.name, range(len(self._segments.rows)))):
                    (self._folder / name).unlink(missing_ok=True)
