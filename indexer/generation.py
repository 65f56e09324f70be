"""Writing one generation of an index: appended bit by bit, then committed in one step."""

from __future__ import annotations

import errno
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from llm2clip.indexer.earlier import sha256_of
from llm2clip.indexer.errors import IndexWriteError
from llm2clip.indexer.faiss_index import KIND, write_faiss
from llm2clip.indexer.items import ErrorRow, ItemRow, ItemsWriter
from llm2clip.indexer.manifest import MANIFEST, FileRecord, Manifest, Segment, write_manifest
from llm2clip.indexer.pipeline import Outcome
from llm2clip.indexer.segments import SegmentWriter, Vectors, map_segment
from llm2clip.indexer.store import faiss_name, generation_of, items_name, remove_generations

CHECKPOINT_SECONDS = 2.0
"""At most so much work is lost when the process is killed."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a generation is made from and with."""

    corpus: Mapping[str, str]
    """Identity of the corpus."""
    encoder: Mapping[str, str | int]
    """Identity of the encoder."""
    encoder_source: str
    """What ``load_encoder`` loads it from."""
    anew: bool
    """Whether the index that was there before is not to be trusted."""


class GenerationWriter:
    """Appends outcomes to the files of a generation; ``commit`` makes it the index.

    Args:
        folder: the index.
        generation: its number, which no file in the folder has.
        origin: what it is made from and with.

    Raises:
        IndexWriteError: the disk is full, or worse.
    """

    def __init__(self, folder: Path, *, generation: int, origin: Origin) -> None:
        self._folder, self._generation, self._origin = folder, generation, origin
        self._dim = int(origin.encoder["dim"])
        self._index_id = uuid.uuid4().hex
        self.items = self.bad = 0
        self._checkpointed = time.monotonic()
        meta = {
            "index_id": self._index_id,
            "corpus": json.dumps(dict(origin.corpus)),
            "encoder": json.dumps(dict(origin.encoder)),
            "encoder_source": json.dumps(origin.encoder_source),
            "anew": json.dumps(origin.anew),
        }
        with self._writing():
            self._items = ItemsWriter(folder / items_name(generation), meta=meta)
            self._segments = SegmentWriter(folder, generation=generation, dim=self._dim)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise IndexWriteError(
                f"cannot write the index at {self._folder}: {error.strerror or error}. What was done so far is kept: "
                f"{self._remedy(error)}"
            ) from error

    def _remedy(self, error: OSError) -> str:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error)  # SQLite gives no number
        if not full:
            return "put that right and run the same command again"
        remedy = "make room and run the same command again"
        if not self.items:
            return remedy
        ours = (name for name in os.listdir(self._folder) if generation_of(name) == self._generation)
        kept = sum(os.path.getsize(self._folder / name) for name in ours)
        return (
            f"{remedy}. It first copies the {kept / 2**20:,.1f} MB that are kept into new files: "
            "they take their room twice until it has ended"
        )

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Write what became of some records.

        Raises:
            IndexWriteError: the disk is full, or worse.
        """
        vectors = [outcome.vector for outcome in outcomes if outcome.vector is not None]
        good = [outcome for outcome in outcomes if outcome.vector is not None]
        items = [_item(self.items + number, outcome) for number, outcome in enumerate(good)]
        errors = [row for outcome in outcomes for row in _errors(outcome)]
        with self._writing():
            if vectors:
                self._segments.append(np.stack(vectors))
            self._items.append(items, errors)
        self.items += len(items)
        self.bad += len(outcomes) - len(items)
        if time.monotonic() - self._checkpointed > CHECKPOINT_SECONDS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Make what was appended safe: a later build takes it over.

        Raises:
            IndexWriteError: the disk is full, or worse.
        """
        with self._writing():
            self._segments.sync()
            self._items.commit()
        self._checkpointed = time.monotonic()

    def commit(self) -> Manifest:
        """Finish the files, make this generation the index, and delete what was there before.

        Raises:
            IndexWriteError: the disk is full, or worse; what was the index before still is.
            FaissNotInstalledError: FAISS is not installed.
        """
        folder = self._folder
        with self._writing():
            self._items.commit()
            self._segments.close(finish=True)
            self._items.close()
            segments = self._described()
            mapped = [map_segment(folder / each.file, rows=each.rows, dim=self._dim) for each in segments]
            candidates = faiss_name(self._generation)
            blocks = Vectors(mapped, dim=self._dim).blocks()
            write_faiss(folder / candidates, blocks, rows=self.items, dim=self._dim)
            names = [items_name(self._generation), *(each.file for each in segments), candidates]
            manifest = self._manifest(segments, names)
            write_manifest(folder, manifest)
        remove_generations(folder, keep=frozenset([MANIFEST, *names]))
        return manifest

    def _described(self) -> tuple[Segment, ...]:
        starts = np.cumsum([0, *self._segments.rows]).tolist()
        return tuple(
            Segment(file=self._segments.name(number), first_id=start, rows=rows)
            for number, (start, rows) in enumerate(zip(starts, self._segments.rows, strict=False))
        )

    def _manifest(self, segments: tuple[Segment, ...], names: Sequence[str]) -> Manifest:
        return Manifest(
            index_id=self._index_id,
            generation=self._generation,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            written_by=_software(),
            corpus=dict(self._origin.corpus),
            encoder=dict(self._origin.encoder),
            encoder_source=self._origin.encoder_source,
            items=self.items,
            tombstones=0,
            bad=self.bad,
            items_file=items_name(self._generation),
            segments=segments,
            faiss_file=faiss_name(self._generation),
            faiss_kind=KIND,
            files={name: _file_record(self._folder / name) for name in names},
        )

    def close(self) -> None:
        """Close the files, committed or not."""
        self._segments.close(finish=False)
        self._items.close()


def _item(id: int, outcome: Outcome) -> ItemRow:
    record = outcome.record
    return ItemRow(
        id=id,
        key=record.key,
        path=record.path,
        offset=record.offset,
        size=record.size or 0,
        mtime_ns=record.mtime_ns or 0,
        sidecars=record.sidecars,
        hash=outcome.hash,
        width=outcome.width,
        height=outcome.height,
        caption=record.caption,
        metadata=json.dumps(record.metadata, ensure_ascii=False) if record.metadata else None,
    )


def _errors(outcome: Outcome) -> list[ErrorRow]:
    record = outcome.record
    if outcome.reason is not None:
        return [ErrorRow(record.key, outcome.stage, outcome.reason, record.size, record.mtime_ns)]
    if record.note is not None:
        return [ErrorRow(record.key, "sidecar", record.note, record.size, record.mtime_ns)]
    return []


def _file_record(path: Path) -> FileRecord:
    return FileRecord(bytes=os.path.getsize(path), sha256=sha256_of(path))


def _software() -> str:
    try:
        return f"llm2clip-retrieval {version('llm2clip-retrieval')}"
    except PackageNotFoundError:
        return "llm2clip-retrieval"
