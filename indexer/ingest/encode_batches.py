"""Encode prepared images in batches, and write in the background."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
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
    """

    def __init__(self, size: int | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.size = size or _FIRST
        """Images in the next pass."""
        self.settled = size is not None
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
    """Calls ``work`` with each item, in order, in a thread of its own with a bounded queue."""

    def __init__(self, work: Callable[[Item], object], *, waiting: int = 1) -> None:
        self._work = work
        self._queue: queue.Queue[Item | None] = queue.Queue(waiting)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write")

    def put(self, item: Item) -> None:
        """Queue an item; waits while the queue is full."""
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


def batches_of(outcomes: Iterable[Outcome], size: AdaptiveBatchSize) -> Iterator[list[Outcome]]:
    """Outcomes in order, in lists with as many prepared images as the encoder takes at once."""
    pending: list[Outcome] = []
    waiting = 0
    for outcome in outcomes:
        pending.append(outcome)
        waiting += outcome.pixels is not None
        if waiting >= size.size or len(pending) >= CHUNK + 4 * size.size:
            yield pending
            pending, waiting = [], 0
    if pending:
        yield pending


def encode_batch(
    outcomes: Sequence[Outcome], encoder: ImageEncoder, size: AdaptiveBatchSize, *, works: bool
) -> bool:
    """Encode the prepared images among some outcomes, in place; ``size`` is halved if memory is short.

    ``works`` says whether the encoder is known to encode images: those that it refuses then become outcomes with a
    reason. Returns ``works`` from now on.
    """
    works = works or _any_vector(outcomes)  # reused vectors are the encoder's too
    waiting = [outcome for outcome in outcomes if outcome.pixels is not None]
    if not waiting:
        return works
    try:
        with size if len(waiting) == size.size else nullcontext():
            rows = encoder.encode_prepared(_pixels(waiting))
    except (ValueError, RuntimeError, MemoryError) as error:
        if not _encode_parts(waiting, encoder, works, error):
            size.halve()
    else:
        _store(rows, waiting, encoder.info)
    return works or _any_vector(outcomes)


def _encode_parts(outcomes: Sequence[Outcome], encoder: ImageEncoder, works: bool, error: Exception) -> bool:
    """Encode what failed together: one by one if it was refused, split in two if memory is short (returns False)."""
    refused, middle = isinstance(error, ValueError), len(outcomes) // 2
    if refused and len(outcomes) == 1:
        outcomes[0].pixels, outcomes[0].stage, outcomes[0].reason = None, "encode", reason_of(error)
        return True
    if not refused and (len(outcomes) < 2 or not _out_of_memory(error)):
        raise error
    parts = [[outcome] for outcome in outcomes] if refused else [outcomes[:middle], outcomes[middle:]]
    for part in parts:
        try:
            rows = encoder.encode_prepared(_pixels(part))
        except (ValueError, RuntimeError, MemoryError) as again:
            _encode_parts(part, encoder, works or _any_vector(outcomes), again)
        else:
            _store(rows, part, encoder.info)
    if refused and not works and not _any_vector(outcomes):
        raise error  # it is not the images
    return refused


def _pixels(outcomes: Sequence[Outcome]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
    pixels = [outcome.pixels for outcome in outcomes if outcome.pixels is not None]
    return np.stack(pixels) if len({image.shape for image in pixels}) == 1 else pixels


def _out_of_memory(error: Exception) -> bool:
    # Messages of PyTorch for CUDA, and of its allocator for CPUs.
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        part in text for part in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _any_vector(outcomes: Sequence[Outcome]) -> bool:
    return any(outcome.vector is not None for outcome in outcomes)


def _store(rows: NDArray[np.float32], outcomes: Sequence[Outcome], info: EncoderIdentity) -> None:
    rows = np.asarray(rows, dtype=np.float32)
    if rows.shape != (len(outcomes), info.dim):
        raise IndexerError(
            f"encoder '{info.name}' gave vectors of shape {rows.shape} for {len(outcomes)} images, expected "
            f"{(len(outcomes), info.dim)}: this is a bug in the encoder"
        )
    norms = np.linalg.norm(rows, axis=1)
    if not np.all(np.abs(norms - 1) < 0.01):
        raise IndexerError(
            f"encoder '{info.name}' gave vectors of lengths {norms.min():.4g} to {norms.max():.4g}, expected 1: "
            "this is a bug in the encoder"
        )
    for outcome, row in zip(outcomes, rows, strict=True):
        outcome.pixels, outcome.vector = None, row.astype(np.float16)
