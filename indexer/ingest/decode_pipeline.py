"""Read and decode images in threads, in order, with a bounded number of them in memory."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

from llm2clip.indexer.core.encoder_protocol import Prepared
from llm2clip.indexer.ingest.encode_batches import AdaptiveBatchSize
from llm2clip.indexer.ingest.listing import chunks
from llm2clip.indexer.ingest.vector_reuse import VectorCache
from llm2clip.indexer.records.files import content_hash
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.storage.items_reader import ErrorRow
from llm2clip.indexer.storage.outcome import Outcome, ReusedVector, reason_of

_MOST = 64
_LARGE_FILE = 6 * 2**20
_LOOK = 1.0


class _Reader:
    """Reads and decodes images in threads.

    The number of active threads is a number of permits, which can grow. At most two work on large files, which may need
    hundreds of megabytes each.
    """

    def __init__(self, prepare: Callable[[Record], Outcome], workers: int | None) -> None:
        processors = os.cpu_count() or 1
        self._prepare = prepare
        self.workers = workers or min(16, processors)
        self._limit = workers or max(min(_MOST, 8 * processors), self.workers)
        self._permits = threading.Semaphore(self.workers)
        self._large = threading.Semaphore(2)
        self._pool = ThreadPoolExecutor(max_workers=self._limit, thread_name_prefix="decode")
        self._began, self._busy, self._starved = time.perf_counter(), time.process_time(), 0.0

    def begin(self, record: Record) -> Future[Outcome]:
        """Read and decode an image when a thread is free."""
        return self._pool.submit(self._work, record)

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

    def _work(self, record: Record) -> Outcome:
        with self._permits, self._large if (record.size or 0) >= _LARGE_FILE else nullcontext():
            return self._prepare(record)


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
    reader = _Reader(lambda record: _prepare(record, decode, caches), workers)
    waiting: deque[Future[Outcome] | Outcome] = deque()
    try:
        for settled in _looked_up(records, caches):
            waiting.append(reader.begin(settled) if isinstance(settled, Record) else settled)
            while len(waiting) >= 3 * size.size + reader.workers:
                yield reader.result(waiting.popleft())
        while waiting:
            yield reader.result(waiting.popleft())
    finally:
        reader.close()


def _looked_up(records: Iterable[Record], caches: Sequence[VectorCache]) -> Iterator[Record | Outcome]:
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
                yield answer.outcome(record) if answer is not None else record


def _prepare(record: Record, decode: Callable[[bytes], Prepared], caches: Sequence[VectorCache]) -> Outcome:
    try:
        content = record.read()
    except (OSError, ValueError) as error:
        return Outcome(record=record, stage="read", reason=reason_of(error))
    if not content:
        return Outcome(record=record, stage="decode", reason="the file is empty")
    hash = content_hash(content)
    for cache in caches:
        if (known := cache.by_hash(hash, key=record.key)) is not None:
            return known.outcome(record)
    try:
        image = decode(content)
    except (OSError, ValueError) as error:
        return Outcome(record=record, stage="decode", reason=reason_of(error))
    except Exception as error:
        error.add_note(f"while decoding {record.uri}")
        raise
    return Outcome(record=record, pixels=image.pixels, hash=hash, width=image.width, height=image.height)
