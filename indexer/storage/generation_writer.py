"""Writing one generation of an index: changes are appended bit by bit, then committed in one step."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from llm2clip.indexer.core.errors import IndexDamagedError, IndexWriteError
from llm2clip.indexer.planner.build_ann import covers_again, write_ann
from llm2clip.indexer.storage.index_folder import ann_name, items_name, remove_generations
from llm2clip.indexer.storage.items_reader import ErrorRow, ItemRow
from llm2clip.indexer.storage.items_writer import MODULUS, ItemsWriter
from llm2clip.indexer.storage.manifest import DEFAULT_PLAN, MANIFEST, Ann, Manifest, write_manifest
from llm2clip.indexer.storage.outcome import Outcome
from llm2clip.indexer.storage.provenance import BuildInfo as Origin
from llm2clip.indexer.storage.provenance import (
    empty_manifest,
    errors_of,
    file_record,
    item_row,
    remedy,
    software,
)
from llm2clip.indexer.storage.recovery import count_uncommitted, files_of, prune
from llm2clip.indexer.storage.vector_segments import Rows, SegmentWriter, Vectors, join_small, map_segment

CHECKPOINT_SECONDS = 2.0
"""At most so much work is lost when the process is killed."""
Planner = Callable[[Path, Vectors], Mapping[str, Any]]
"""Chooses a search structure for some vectors, writes it to a file and returns its plan (``planner.py``)."""


class GenerationWriter:
    """Appends changes to the files of a generation; ``commit`` makes it the index.

    Args:
        folder: the index.
        generation: its number, larger than that of any file in the folder.
        origin: what a new index is made from and with; for an old one see ``upon``.
        upon: the manifest that the change builds upon; None for a new index.
        items: the items file, if it is there already.

    Raises:
        IndexWriteError: the disk is full, or worse.
    """

    def __init__(
        self,
        folder: Path,
        *,
        generation: int,
        origin: Origin | None = None,
        upon: Manifest | None = None,
        items: ItemsWriter | None = None,
    ) -> None:
        self._folder, self.generation = folder, generation
        if upon is None:
            assert origin is not None
            upon = empty_manifest(origin, generation=0, items_file=items_name(generation))
        self.base = upon
        self.appended = self.removed = self.errors = 0
        """Items and errors written, and items taken away, so far."""
        self.new = self.changed = self.described = self.lost = 0
        """Keys that there were not; keys of other content now; of the same; those that cannot be read any more."""
        self.plan: Mapping[str, Any] = upon.ann.plan if upon.ann else DEFAULT_PLAN
        """Of the search structure, where it is written without a planner."""
        self._checksum = int(upon.items_checksum, 16)
        self._checkpointed = time.monotonic()
        self.decoding = upon.decoding
        """How images are decoded."""
        self.sources = list(upon.sources)
        """All sources; one that is added may be named by what is appended."""
        with self._writing():
            if items is None:
                anew = json.dumps(bool(origin and origin.anew))
                meta = {"index_id": upon.index_id, "anew": anew}
                items = ItemsWriter(folder / upon.items_file, generation=generation, meta=meta)
            self._items = items
            self._segments = SegmentWriter(folder, generation=generation, dim=upon.dim)
            self._announce()

    def _announce(self) -> None:
        """Write down what a later process needs to take over what this one leaves unfinished."""
        meta = {
            "writing": str(self.generation),
            "sources": json.dumps([dict(source) for source in self.sources]),
            "encoder": json.dumps(dict(self.base.encoder)),
            "encoder_source": json.dumps(self.base.encoder_source),
        }
        for name, value in meta.items():
            self._items.set_meta(name, value)
        self._items.commit()

    def source(self, corpus: Mapping[str, str]) -> int:
        """Position of a new source."""
        self.sources.append(dict(corpus))
        with self._writing():
            self._announce()
        return len(self.sources) - 1

    @property
    def rows(self) -> int:
        """How many vectors there are now."""
        return self.base.rows + sum(self._segments.rows)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise IndexWriteError(
                f"cannot write the index at {self._folder}: {error.strerror or error}. "
                f"What was done so far is kept: {remedy(error)}"
            ) from error

    def append(self, outcomes: Sequence[Outcome], *, source: int = 0) -> None:
        """Write what became of some records; what was known of their keys before is taken away.

        Raises:
            IndexWriteError: the disk is full, or worse.
        """
        good = [outcome for outcome in outcomes if outcome.vector is not None]
        fresh = [outcome.vector for outcome in good if outcome.id is None and outcome.vector is not None]
        first = self.rows
        with self._writing():
            if fresh:
                self._segments.append(np.stack(fresh))
            gone, checksum = self._items.remove_keys(
                [outcome.record.key for outcome in outcomes], source=source
            )
            numbers = iter(range(first, first + len(fresh)))
            ids = [next(numbers) if outcome.id is None else outcome.id for outcome in good]
            items = [item_row(id, outcome, source=source) for id, outcome in zip(ids, good, strict=True)]
            errors = [row for outcome in outcomes for row in errors_of(outcome, source)]
            again = [outcome.id for outcome in good if outcome.id is not None]
            added = self._items.append(items, errors, again=again)
        self._checksum = (self._checksum + added - checksum) % MODULUS
        self.appended += len(items)
        self.removed += len(gone)
        self.errors += len(errors)
        replaced = {key for _, key in gone}
        self.described += len(again)
        self.new += sum(item.key not in replaced for item in items)
        self.changed += sum(item.key in replaced for item in items) - len(again)
        self.lost += len(replaced.difference(item.key for item in items))
        if time.monotonic() - self._checkpointed > CHECKPOINT_SECONDS:
            self.checkpoint()

    def copy(self, items: Sequence[ItemRow], vectors: Rows) -> None:
        """Write items of another generation with their vectors under new ids. Shape: (n, dim), float16.

        Raises:
            IndexWriteError: the disk is full, or worse.
        """
        first = self.rows
        with self._writing():
            self._segments.append(vectors)
            added = self._items.append([row._replace(id=first + n) for n, row in enumerate(items)], ())
        self._checksum = (self._checksum + added) % MODULUS
        self.appended += len(items)

    def remove(self, ids: Sequence[int]) -> int:
        """Take items away; returns how many were there.

        Raises:
            IndexWriteError: the disk is full, or worse.
        """
        with self._writing():
            count, checksum = self._items.remove_ids(ids)
        self._checksum = (self._checksum - checksum) % MODULUS
        self.removed += count
        return count

    def forget(self, ids: Sequence[int]) -> None:
        """Let the vectors of removed items, which are damaged, be taken over by no other image."""
        with self._writing():
            self._items.forget(ids)

    def recount(self) -> None:
        """Take the numbers of items from the items themselves: those of a damaged index may not fit."""
        with self._writing():
            count, self._checksum = self._items.recount()
        self.appended, self.removed = count - self.base.items, 0

    def remove_errors(self, keys: Sequence[str], *, source: int) -> None:
        """Forget that images could not be read."""
        with self._writing():
            self._items.remove_keys(keys, source=source)
        self.errors += len(keys)

    def keep_out(self, rows: Sequence[ErrorRow]) -> None:
        """Note that images were taken out by hand, so that no update brings them back."""
        with self._writing():
            self._items.append((), rows)
        self.errors += len(rows)

    def checkpoint(self) -> None:
        """Make what was appended safe: a later change takes it over.

        Raises:
            IndexWriteError: the disk is full, or worse.
        """
        with self._writing():
            self._segments.sync()
            self._items.commit()
        self._checkpointed = time.monotonic()

    def commit(self, *, planner: Planner | None = None, whole: bool = False) -> Manifest:
        """Finish the files, make this generation the index, and delete what is no longer part of it.

        Args:
            planner: chooses the search structure, where it is written; None: the one there was, else the exact one.
            whole: whether the search structure has to cover every vector.

        Raises:
            IndexWriteError: the disk is full, or worse; what was the index before still is.
            FaissNotInstalledError: FAISS is needed and not installed.
        """
        folder, base = self._folder, self.base
        with self._writing():
            self._segments.close(finish=True)
            new = [
                (self._segments.name(number), rows) for number, rows in enumerate(self._segments.rows) if rows
            ]
            segments = join_small(
                folder,
                base.segments,
                new,
                files=base.files,
                generation=self.generation,
                dim=base.dim,
            )
            rows = self.rows
            ann = self._ann(segments, rows, planner, whole)
            self._items.begin()
            self._items.set_meta("generation", str(self.generation))
            bad = self._items.count_bad()
            self._items.commit()
            names = [*(segment.file for segment in segments), *([ann.file] if ann else [])]
            manifest = replace(
                base,
                generation=self.generation,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                written_by=software(),
                sources=tuple(self.sources),
                rows=rows,
                items=base.items + self.appended - self.removed,
                bad=bad,
                items_bytes=os.path.getsize(self._items.path),
                items_checksum=f"{self._checksum:016x}",
                segments=segments,
                ann=ann,
                files={name: base.files.get(name) or file_record(folder / name) for name in names},
                decoding=self.decoding,
            )
            write_manifest(folder, manifest)
        with suppress(IndexWriteError):  # it is committed; the next change tidies up
            prune(self._items)
        self._items.close()
        clean(folder, manifest)
        return manifest

    def _ann(self, segments: Sequence[Any], rows: int, planner: Planner | None, whole: bool) -> Ann | None:
        old = self.base.ann
        covered = old.rows if old else 0
        if rows == covered or not (
            whole or old is None or covers_again(old.plan, covered=covered, rows=rows)
        ):
            return old
        folder, dim = self._folder, self.base.dim
        vectors = Vectors(
            [map_segment(folder / each.file, rows=each.rows, dim=dim) for each in segments], dim=dim
        )
        path = folder / ann_name(self.generation)
        if planner is not None:
            plan = planner(path, vectors)
        else:
            plan = write_ann(path, vectors, plan=self.plan)
        return Ann(file=path.name, rows=rows, plan=dict(plan))

    def delete_if_empty(self) -> None:
        """Delete the files of a new index that has nothing, not even what an earlier process left."""
        path = self._folder / self.base.items_file
        with suppress(IndexDamagedError):
            if not (self.base.generation or count_uncommitted(path, rows=0)):
                for name in (path.name, *map(self._segments.name, range(len(self._segments.rows)))):
                    (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files, committed or not."""
        self._segments.close(finish=False)
        self._items.close()


@contextmanager
def closing_writer(writer: GenerationWriter) -> Iterator[GenerationWriter]:
    """Close a writer however it ends: what was done is kept, and a new index in which nothing was done is deleted."""
    try:
        yield writer
    except BaseException:  # Ctrl-C above all
        with suppress(IndexWriteError, sqlite3.Error):
            writer.checkpoint()
        writer.close()
        writer.delete_if_empty()
        raise
    writer.close()


def clean(folder: Path, manifest: Manifest) -> None:
    """Delete the files of an index that neither its manifest nor its unfinished vectors need."""
    keep = {MANIFEST, manifest.items_file, *manifest.files, *files_of(folder / manifest.items_file)}
    remove_generations(folder, keep=frozenset(keep))
