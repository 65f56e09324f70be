"""Records in, vectors out: threads read and decode while the caller's thread runs the encoder.

Everything is in order and bounded: at most a window of images is in memory, whatever the corpus.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.ingest.batching import AdaptiveBatchSize
from llm2clip.indexer.ingest.vector_reuse import VectorCache
from llm2clip.indexer.records.files import content_hash
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.storage.items_reader import ErrorRow
from llm2clip.indexer.storage.outcome import Outcome, ReusedVector, reason_of

CHUNK = 512
"""Records that are looked up together in an earlier build, and written together at most."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images are read and decoded."""

    workers: int | None = None
    """Threads; None: as many as there are processors, and more where they turn out to wait for the storage."""
    margin: int = 0
    """See ``Decoding``."""


_MOST = 64
_LARGE_FILE = 6 * 2**20
_LOOK = 1.0


class _Reader:
    """Reads and decodes images in threads.

    How many work at once is a number of permits, which can grow; those on large files, which may need hundreds of
    megabytes each, are two at most.
    """

    def __init__(self, encoder: ImageEncoder, earlier: list[VectorCache], reading: Reading) -> None:
        processors = os.cpu_count() or 1
        self._encoder, self._earlier, self._margin = encoder, earlier, reading.margin
        self.workers = reading.workers or min(16, processors)
        self._limit = reading.workers or max(min(_MOST, 8 * processors), self.workers)
        self._permits = threading.Semaphore(self.workers)
        self._large = threading.Semaphore(2)
        self._pool = ThreadPoolExecutor(max_workers=self._limit, thread_name_prefix="decode")
        self._began, self._busy, self._starved = time.perf_counter(), time.process_time(), 0.0

    def begin(self, record: Record) -> Future[Outcome]:
        """Read and decode an image as soon as a thread is free."""
        return self._pool.submit(self._work, record)

    def result(self, waiting: Future[Outcome] | Outcome) -> Outcome:
        """The outcome, waited for if need be; more threads where that happens while processors have nothing to do."""
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
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, record: Record) -> Outcome:
        with self._permits:
            if (record.size or 0) < _LARGE_FILE:
                return _prepare(record, self._encoder, self._earlier, self._margin)
            with self._large:
                return _prepare(record, self._encoder, self._earlier, self._margin)


def prepared(
    records: Iterable[Record],
    *,
    encoder: ImageEncoder,
    earlier: list[VectorCache],
    reading: Reading,
    batches: AdaptiveBatchSize,
) -> Iterator[Outcome]:
    """Read and decode records in threads, in order, at most three batches ahead.

    Args:
        records: what to read.
        encoder: its ``prepare`` decodes.
        earlier: builds whose vectors are taken over, the first that has one.
        reading: how.
        batches: how many the encoder takes at once.
    """
    reader = _Reader(encoder, earlier, reading)
    waiting: deque[Future[Outcome] | Outcome] = deque()
    try:
        for settled in _looked_up(records, earlier):
            waiting.append(reader.begin(settled) if isinstance(settled, Record) else settled)
            while len(waiting) >= 3 * batches.size + reader.workers:
                yield reader.result(waiting.popleft())
        while waiting:
            yield reader.result(waiting.popleft())
    finally:
        reader.close()


def _looked_up(records: Iterable[Record], earlier: list[VectorCache]) -> Iterator[Record | Outcome]:
    for chunk in chunks(records):
        answers: list[ReusedVector | ErrorRow | None] = [None] * len(chunk)
        for source in earlier:
            missing = [number for number, answer in enumerate(answers) if answer is None]
            for number, answer in zip(missing, source.kept([chunk[n] for n in missing]), strict=True):
                answers[number] = answer
        for record, answer in zip(chunk, answers, strict=True):
            yield _settled(record, answer)


def chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in lists of ``CHUNK``."""
    iterator = iter(records)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _settled(record: Record, answer: ReusedVector | ErrorRow | None) -> Record | Outcome:
    if record.problem is not None:
        return Outcome(record=record, stage="list", reason=record.problem)
    if answer is None:
        return record
    if isinstance(answer, ErrorRow):
        return Outcome(record=record, kept=True, stage=answer.stage, reason=answer.reason)
    return _settled_as(record, answer)


def _settled_as(record: Record, answer: ReusedVector) -> Outcome:
    return Outcome(
        record=record,
        kept=True,
        vector=answer.vector,
        id=answer.id,
        hash=answer.hash,
        width=answer.width,
        height=answer.height,
    )


def _prepare(record: Record, encoder: ImageEncoder, earlier: list[VectorCache], margin: int) -> Outcome:
    try:
        content = record.read()
    except (OSError, ValueError) as error:
        return Outcome(record=record, stage="read", reason=reason_of(error))
    if not content:
        return Outcome(record=record, stage="decode", reason="the file is empty")
    hash = content_hash(content)
    for source in earlier:
        if (known := source.by_hash(hash, key=record.key)) is not None:
            return _settled_as(record, known)
    try:
        image = encoder.prepare(content, margin=margin)
    except (OSError, ValueError) as error:
        return Outcome(record=record, stage="decode", reason=reason_of(error))
    except Exception as error:
        error.add_note(f"while decoding {record.uri}")
        raise
    return Outcome(
        record=record,
        pixels=image.pixels,
        hash=hash,
        width=image.width,
        height=image.height,
    )
