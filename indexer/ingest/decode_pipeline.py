"""Read and decode images in threads, in order, with a bounded number of them in memory; or reuse their vectors.

An image keeps its vector while its key, size and time of change stay the same; an image under another key or of another
time gets the vector of one with the same content.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm2clip.indexer.core.encoder_protocol import Prepared
from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.ingest.encode_batches import AdaptiveBatchSize
from llm2clip.indexer.ingest.listing import chunks, same_error
from llm2clip.indexer.records.files import content_hash, embedded_parts
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.records.values import EMBEDDED, split_embedded, with_embedded
from llm2clip.indexer.storage.items_reader import IN, ErrorRow, ItemsReader, metadata_of
from llm2clip.indexer.storage.items_writer import UNFINISHED, VECTOR_PLACE, source_text
from llm2clip.indexer.storage.manifest import Manifest
from llm2clip.indexer.storage.outcome import Outcome, ReusedVector, reason_of
from llm2clip.indexer.storage.vector_segments import Rows, Vectors, map_appended

SHORT = "not enough memory to decode it: the next build or update tries again"
"""The reason of an image that is not to blame."""
_MOST = 64
_LARGE_FILE = 6 * 2**20
_LOOK = 1.0
_Row = tuple[str, int, int, bytes, int, int, str, int]
_Unread = tuple[Record, ReusedVector | None]
"""An image to be read, and its vector if only what it says of itself is to be read."""


class VectorCache(Protocol):
    """Vectors that were made before. Safe to use from several threads."""

    def kept(self, records: Sequence[Record]) -> Sequence[ReusedVector | ErrorRow | None]:
        """For each record its vector, or why it could not be decoded; None if it has to be read."""

    def by_hash(self, hash: bytes, *, key: str) -> ReusedVector | None:
        """The vector of an image of that content, with its id if it is the one of that key; None if there is none."""


class CommittedVectors:
    """The vectors of the committed index, for the records of the source at one position."""

    def __init__(self, items: ItemsReader, vectors: Vectors, *, source: int) -> None:
        self._items, self._vectors, self._source = items, vectors, source

    def kept(self, records: Sequence[Record]) -> list[ReusedVector | ErrorRow | None]:
        """For each record its vector, or why it could not be decoded; None if it has to be read."""
        items, errors = self._items.known([record.key for record in records], source=self._source)
        told = self._told([item.id for item in items.values()])
        found: list[ReusedVector | ErrorRow | None] = []
        for record in records:
            item, error = items.get(record.key), errors.get(record.key)
            now = (record.size or 0, record.mtime_ns or 0)
            if item is not None and record.problem is None and now == (item.size, item.mtime_ns):
                known = self._reused(item.id, item.hash, item.width, item.height, own=True)
                found.append(replace(known, told=told[item.id]) if item.id in told else known)
            else:
                found.append(error if error is not None and same_error(record, error) else None)
        return found

    def by_hash(self, hash: bytes, *, key: str) -> ReusedVector | None:
        """The vector of an image of that content, with its id if it is the one of that key; None if there is none."""
        # Vectors of removed images can be reused too, until the index is compacted.
        columns = "id, width, height, (source = ? AND key = ? AND added <= ? AND removed > ?) AS own"
        now = self._items.generation
        rows = self._items.select(
            columns,
            "FROM items WHERE hash = ? AND id BETWEEN 0 AND ? ORDER BY own DESC LIMIT 1",
            *(self._source, key, now, now, hash, len(self._vectors) - 1),
        )
        if not rows:
            return None
        [(id, width, height, own)] = rows
        return self._reused(id, hash, width, height, own=bool(own))

    def _told(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What the files of some items said of themselves when they were read."""
        rows = self._items.of_ids("id, metadata", ids)
        return {
            id: split_embedded(metadata_of(stored))[1] for id, stored in rows if stored and EMBEDDED in stored
        }

    def _reused(self, id: int, hash: bytes, width: int, height: int, *, own: bool) -> ReusedVector:
        vector = self._vectors.take(np.array([id]))[0]
        return ReusedVector(vector=vector, hash=hash, width=width, height=height, id=id if own else None)


class UncommittedVectors:
    """Vectors that no manifest names, of earlier transactions and of the present one, for the records of one source."""

    def __init__(self, folder: Path, base: Manifest, *, source: int, generation: int) -> None:
        self._folder, self._dim, self._first = folder, base.dim, base.rows
        self._source = source_text(base.sources[source])
        self._items = ItemsReader(folder / base.items_file, generation=generation)
        self._files: dict[str, Rows] = {}

    def kept(self, records: Sequence[Record]) -> list[ReusedVector | None]:
        """For each record its vector, if it had one and is unchanged."""
        keys = json.dumps([record.key for record in records])
        rows = self._items.select(
            UNFINISHED, f"FROM unfinished WHERE source = ? AND key IN {IN}", self._source, keys
        )
        found = {row[0]: row for row in rows}
        answers: list[ReusedVector | None] = []
        for record in records:
            row = found.get(record.key)
            same = row is not None and record.problem is None and row[1:3] == (record.size, record.mtime_ns)
            answers.append(self._reused(row) if row is not None and same else None)
        return answers

    def by_hash(self, hash: bytes, *, key: str) -> ReusedVector | None:
        """The vector of an image of that content; None if there is none."""
        rows = self._items.select(UNFINISHED, "FROM unfinished WHERE hash = ? LIMIT 1", hash)
        if not rows:
            rows = self._items.select(
                f"key, size, mtime_ns, hash, width, height, {VECTOR_PLACE}",
                "FROM items WHERE hash = ? AND id >= ? LIMIT 1",
                *(self._items.generation, self._first, self._first, hash, self._first),
            )
        return self._reused(rows[0]) if rows else None

    def _reused(self, row: _Row) -> ReusedVector | None:
        _, _, _, hash, width, height, file, number = row
        rows = self._mapped(file, number)
        if (
            not 0 <= number < len(rows)
            or abs(float(np.linalg.norm(rows[number].astype(np.float32))) - 1) > 0.01
        ):
            return None
        return ReusedVector(vector=rows[number], hash=hash, width=width, height=height, unread=True)

    def _mapped(self, file: str, number: int) -> Rows:
        """The rows of a file; one that is being written grows."""
        if number >= len(self._files.get(file, ())):
            try:
                self._files[file] = map_appended(self._folder, file, dim=self._dim)
            except (OSError, IndexDamagedError):
                self._files[file] = np.empty((0, self._dim), dtype=np.float16)
        return self._files[file]

    def close(self) -> None:
        """Close the items file once nothing reads it."""
        self._items.close()


class _Reader:
    """Reads and decodes images in threads.

    The number of active threads is a number of permits, which can grow. At most two work on large files, which may need
    hundreds of megabytes each.
    """

    def __init__(
        self, prepare: Callable[[Record, ReusedVector | None], Outcome], workers: int | None
    ) -> None:
        processors = os.cpu_count() or 1
        self._prepare = prepare
        self.workers = workers or min(16, processors)
        self._limit = workers or max(min(_MOST, 8 * processors), self.workers)
        self._permits = threading.Semaphore(self.workers)
        self._large = threading.Semaphore(2)
        self._pool = ThreadPoolExecutor(max_workers=self._limit, thread_name_prefix="decode")
        self._began, self._busy, self._starved = time.perf_counter(), time.process_time(), 0.0

    def begin(self, image: _Unread) -> Future[Outcome]:
        """Read and decode an image when a thread is free."""
        return self._pool.submit(self._work, image)

    def result(self, waiting: Future[Outcome] | Outcome) -> Outcome:
        """Wait for an outcome; allows more threads if that takes long while processors are idle."""
        if isinstance(waiting, Outcome) or waiting.done():
            return waiting if isinstance(waiting, Outcome) else waiting.result()
        began = time.perf_counter()
        outcome = waiting.result()
        now = time.perf_counter()
        self._starved += now - began
        if now - self._began > _LOOK:
            self._look(now)
        return outcome

    def _look(self, now: float) -> None:
        passed, busy = now - self._began, time.process_time() - self._busy
        idle = busy < 0.6 * passed * (os.cpu_count() or 1)
        if self._starved > 0.3 * passed and idle and self.workers < self._limit:
            more = min(self.workers, self._limit - self.workers)
            self.workers += more
            self._permits.release(more)
        self._began, self._busy, self._starved = now, time.process_time(), 0.0

    def close(self) -> None:
        """Cancel what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, image: _Unread) -> Outcome:
        with self._permits, self._large if (image[0].size or 0) >= _LARGE_FILE else nullcontext():
            return self._prepare(*image)


def decode_images(
    records: Iterable[Record],
    *,
    decode: Callable[[bytes], Prepared],
    caches: Sequence[VectorCache],
    workers: int | None,
    size: AdaptiveBatchSize,
) -> Iterator[Outcome]:
    """Read and decode images in threads, in order, at most three batches ahead.

    Vectors are reused from the first cache that has one. ``decode`` raises ``ValueError`` if it cannot. Without
    ``workers`` there is a thread per processor, and more where they wait for the storage.
    """
    reader = _Reader(lambda record, known: _prepare(record, known, decode, caches), workers)
    waiting: deque[Future[Outcome] | Outcome] = deque()
    try:
        for settled in _looked_up(records, caches):
            waiting.append(settled if isinstance(settled, Outcome) else reader.begin(settled))
            while len(waiting) >= 3 * size.size + reader.workers:
                yield reader.result(waiting.popleft())
        while waiting:
            yield reader.result(waiting.popleft())
    finally:
        reader.close()


def _looked_up(records: Iterable[Record], caches: Sequence[VectorCache]) -> Iterator[_Unread | Outcome]:
    for chunk in chunks(records):
        answers: list[ReusedVector | ErrorRow | None] = [None] * len(chunk)
        for cache in caches:
            missing = [number for number, answer in enumerate(answers) if answer is None]
            for number, answer in zip(missing, cache.kept([chunk[n] for n in missing]), strict=True):
                answers[number] = answer
        for record, answer in zip(chunk, answers, strict=True):
            if record.problem is not None:
                yield Outcome(record=record, stage="list", reason=record.problem)
            elif isinstance(answer, ErrorRow):
                yield Outcome(record=record, kept=True, stage=answer.stage, reason=answer.reason)
            else:
                unread = answer is None or answer.unread
                yield (record, answer) if unread or answer is None else answer.outcome(record)


def _prepare(
    record: Record,
    known: ReusedVector | None,
    decode: Callable[[bytes], Prepared],
    caches: Sequence[VectorCache],
) -> Outcome:
    try:
        content = record.read()
    except Exception as error:  # whatever the reader of a container raises
        if known is not None:
            return known.outcome(record)
        return Outcome(record=record, stage="read", reason=reason_of(error))
    if not content:
        return Outcome(record=record, stage="decode", reason="the file is empty")
    record = _with_embedded(record, content)
    if known is not None:
        return known.outcome(record)
    hash = content_hash(content)
    for cache in caches:
        if (same := cache.by_hash(hash, key=record.key)) is not None:
            return same.outcome(record)
    try:
        image = decode(content)
    except (OSError, ValueError) as error:
        return Outcome(record=record, stage="decode", reason=reason_of(error))
    except MemoryError:  # not the image's fault: of another stage than what is tried again only if it changes
        return Outcome(record=record, stage="memory", reason=SHORT)
    except Exception as error:
        error.add_note(f"while decoding {record.uri}")
        raise
    return Outcome(record=record, pixels=image.pixels, hash=hash, width=image.width, height=image.height)


def _with_embedded(record: Record, content: bytes) -> Record:
    """The record with what its file says of itself."""
    parts = embedded_parts(content)
    if not any(parts):
        return record
    from llm2clip.indexer.records.embedded import read_embedded

    told = read_embedded(parts)
    return replace(record, metadata=with_embedded(record.metadata, told)) if told else record
