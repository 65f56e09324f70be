"""Encode prepared images in batches, and write in the background."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.encoder_protocol import EncoderIdentity, ImageEncoder
from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.ingest.listing import CHUNK
from llm2clip.indexer.storage.outcome import Outcome, reason_of

_FIRST, _LARGEST = 8, 256
_TURNS = 3
_BETTER = 1.04

Item = TypeVar("Item")


class AdaptiveBatchSize:
    """The number of images in a forward pass: fixed, or found while working.

    Each size is tried a few times and rated by its fastest pass; it doubles until that is no faster. Larger batches
    than needed cost memory and, on a CPU, time.

    Args:
        told: the size; None: to be found.
        clock: gives seconds.
    """

    def __init__(self, told: int | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.size = told or _FIRST
        """Images in the next pass."""
        self.settled = told is not None
        """Whether the size is final."""
        self._clock = clock
        self._times: list[float] = []
        self._best = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = self._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.settled and kind is None:
            self._took(self._clock() - self._began)

    def halve(self) -> None:
        """Halve the size for good: there is not enough memory."""
        self.size, self.settled = max(1, self.size // 2), True

    def _took(self, seconds: float) -> None:
        self._times.append(seconds)
        if len(self._times) < _TURNS:
            return
        rate = self.size / max(min(self._times), 1e-9)
        self._times.clear()
        if rate < self._best * _BETTER:
            self.size //= 2
            self.settled = True
        elif self.size >= _LARGEST:
            self.settled = True
        else:
            self.size, self._best = self.size * 2, rate


class BackgroundWriter(Generic[Item]):
    """An ordered background worker with a bounded queue.

    Args:
        work: called with each item, in a thread of its own.
        waiting: size of the queue.
    """

    def __init__(self, work: Callable[[Item], object], *, waiting: int = 1) -> None:
        self._work = work
        self._queue: queue.Queue[Item | None] = queue.Queue(waiting)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write")

    def put(self, item: Item) -> None:
        """Queue an item; waits while the queue is full.

        Raises:
            BaseException: the error of an earlier item; no later one is worked on.
        """
        self._queue.put(item)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._failure is None:
                try:
                    self._work(item)
                except BaseException as error:
                    self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the queue, also after Ctrl-C: what was queued is not lost."""
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure


def encode_batches(
    outcomes: Iterable[Outcome], *, encoder: ImageEncoder, batches: AdaptiveBatchSize, works: bool = False
) -> Iterator[list[Outcome]]:
    """Encode prepared images, a batch at a time; outcomes stay in order.

    Images that the encoder refuses become outcomes with a reason, once it has encoded any.

    Args:
        outcomes: prepared images, and outcomes that need no encoding.
        encoder: the encoder.
        batches: size of the batches.
        works: whether the encoder is known to encode images.

    Raises:
        IndexerError: the encoder gives vectors of another shape or length.
        ValueError: the encoder refuses all images of the first batch.
    """
    pending: list[Outcome] = []
    waiting: list[Outcome] = []
    for outcome in chain(outcomes, [None]):
        if outcome is not None:
            pending.append(outcome)
            waiting += [outcome] if outcome.pixels is not None else []
            if len(waiting) < batches.size and len(pending) < CHUNK + 4 * batches.size:
                continue
        if waiting:
            works = works or _any_vector(pending)  # reused vectors are the encoder's too
            with batches if len(waiting) == batches.size else nullcontext():
                fits = _encode(waiting, encoder, works)
            if not fits:
                batches.halve()
        if pending:
            works = works or _any_vector(pending)
            yield pending
            pending, waiting = [], []


def _encode(outcomes: list[Outcome], encoder: ImageEncoder, works: bool) -> bool:
    """Encode prepared images, in halves if memory is short; returns whether they fitted at once."""
    pixels = [outcome.pixels for outcome in outcomes if outcome.pixels is not None]
    try:
        batch = np.stack(pixels) if len({image.shape for image in pixels}) == 1 else pixels
        rows = np.asarray(encoder.encode_prepared(batch), dtype=np.float32)
    except ValueError as error:
        if len(outcomes) == 1:
            outcomes[0].pixels, outcomes[0].stage, outcomes[0].reason = None, "encode", reason_of(error)
            return True
        for outcome in outcomes:  # one image must not take the others of its batch with it
            _encode([outcome], encoder, works)
        if not works and not _any_vector(outcomes):
            raise  # it is not the images
        return True
    except (RuntimeError, MemoryError) as error:
        if len(outcomes) < 2 or not _out_of_memory(error):
            raise
    else:
        _check_rows(rows, len(pixels), encoder.info)
        for outcome, row in zip(outcomes, rows, strict=True):
            outcome.pixels, outcome.vector = None, row.astype(np.float16)
        return True
    middle = len(outcomes) // 2
    _encode(outcomes[:middle], encoder, works)
    _encode(outcomes[middle:], encoder, works or _any_vector(outcomes[:middle]))
    return False


def _out_of_memory(error: Exception) -> bool:
    # Messages of PyTorch for CUDA, and of its allocator for CPUs.
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        part in text for part in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _any_vector(outcomes: list[Outcome]) -> bool:
    return any(outcome.vector is not None for outcome in outcomes)


def _check_rows(rows: NDArray[np.float32], count: int, info: EncoderIdentity) -> None:
    if rows.shape != (count, info.dim):
        raise IndexerError(
            f"encoder '{info.name}' gave vectors of shape {rows.shape} for {count} images, expected "
            f"{(count, info.dim)}: this is a fault of the encoder"
        )
    norms = np.linalg.norm(rows, axis=1)
    if not np.all(np.abs(norms - 1) < 0.01):
        raise IndexerError(
            f"encoder '{info.name}' gave vectors of lengths {norms.min():.4g} to {norms.max():.4g}, expected 1: "
            "this is a fault of the encoder"
        )
