"""Writing one generation of an index: changes are appended bit by bit, then committed in one step."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from llm2clip.indexer.ann import DEFAULT_PLAN, covers_again, write_ann
from llm2clip.indexer.earlier import sha256_of
from llm2clip.indexer.errors import IndexDamagedError, IndexWriteError
from llm2clip.indexer.items import ErrorRow, ItemRow
from llm2clip.indexer.items_writer import MODULUS, ItemsWriter
from llm2clip.indexer.manifest import MANIFEST, Ann, FileRecord, Manifest, write_manifest
from llm2clip.indexer.merging import join_small
from llm2clip.indexer.pipeline import Outcome
from llm2clip.indexer.segments import Rows, SegmentWriter, Vectors, map_segment
from llm2clip.indexer.store import ann_name, items_name, remove_generations
from llm2clip.indexer.unfinished import files_of, leftover, tidy

CHECKPOINT_SECONDS = 2.0
"""At most so much work is lost when the process is killed."""
Planner = Callable[[Path, Vectors], Mapping[str, Any]]
"""Chooses a search structure for some vectors, writes it to a file and returns its plan (``planner.py``)."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an index is made from and with."""

    corpus: Mapping[str, str]
    """Identity of the corpus."""
    encoder: Mapping[str, str | int]
    """Identity of the encoder."""
    encoder_source: str
    """What ``load_encoder`` loads it from."""
    anew: bool
    """Whether the index that was there before is not to be trusted."""


def blank(origin: Origin, *, generation: int, items_file: str, index_id: str | None = None) -> Manifest:
    """The manifest of an index without any picture, which was never written."""
    return Manifest(
        index_id=index_id or uuid.uuid4().hex,
        generation=generation,
        created="",
        written_by=software(),
        sources=(dict(origin.corpus),),
        encoder=dict(origin.encoder),
        encoder_source=origin.encoder_source,
        rows=0,
        items=0,
        bad=0,
        items_file=items_file,
        items_bytes=0,
        items_checksum=f"{0:016x}",
        segments=(),
        ann=None,
        files={},
    )


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
            upon = blank(origin, generation=0, items_file=items_name(generation))
        self.base = upon
        self.appended = self.removed = self.errors = 0
        """Items and errors written, and items taken away, so far."""
        self.new = self.changed = self.described = self.lost = 0
        """Keys that there were not; keys of other content now; of the same; those that cannot be read any more."""
        self._checksum = int(upon.items_checksum, 16)
        self._checkpointed = time.monotonic()
        self.decoding = upon.decoding
        """How pictures are decoded."""
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
                f"What was done so far is kept: {_remedy(error)}"
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
            errors = [row for outcome in outcomes for row in _errors(outcome, source)]
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

    def remove_errors(self, keys: Sequence[str], *, source: int) -> None:
        """Forget that pictures could not be read."""
        with self._writing():
            self._items.remove_keys(keys, source=source)
        self.errors += len(keys)

    def keep_out(self, rows: Sequence[ErrorRow]) -> None:
        """Note that pictures were taken out by hand, so that no update brings them back."""
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
            segments = join_small(folder, base.segments, new, generation=self.generation, dim=base.dim)
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
                files={name: base.files.get(name) or _file_record(folder / name) for name in names},
                decoding=self.decoding,
            )
            write_manifest(folder, manifest)
            tidy(self._items)
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
            plan = write_ann(path, vectors, plan=old.plan if old else DEFAULT_PLAN)
        return Ann(file=path.name, rows=rows, plan=dict(plan))

    def delete_if_empty(self) -> None:
        """Delete the files of a new index that has nothing, not even what an earlier process left."""
        path = self._folder / self.base.items_file
        with suppress(IndexDamagedError):
            if not (self.base.generation or leftover(path, rows=0)):
                for name in (path.name, *map(self._segments.name, range(len(self._segments.rows)))):
                    (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files, committed or not."""
        self._segments.close(finish=False)
        self._items.close()


@contextmanager
def unwinding(writer: GenerationWriter) -> Iterator[GenerationWriter]:
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


def item_row(id: int, outcome: Outcome, *, source: int) -> ItemRow:
    """The row of a picture that has a vector."""
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


def _errors(outcome: Outcome, source: int) -> list[ErrorRow]:
    record = outcome.record
    if outcome.reason is not None:
        return [ErrorRow(source, record.key, outcome.stage, outcome.reason, record.size, record.mtime_ns)]
    if record.note is not None:
        return [ErrorRow(source, record.key, "sidecar", record.note, record.size, record.mtime_ns)]
    return []


def _remedy(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error)  # SQLite gives no number
    if full:
        return "make room and run the same command again"
    return "put that right and run the same command again"


def _file_record(path: Path) -> FileRecord:
    return FileRecord(bytes=os.path.getsize(path), sha256=sha256_of(path))


def software() -> str:
    """Name and version of what writes."""
    try:
        return f"llm2clip-retrieval {version('llm2clip-retrieval')}"
    except PackageNotFoundError:
        return "llm2clip-retrieval"
