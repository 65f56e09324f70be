"""How fast a build goes: the size of a batch is found while working, memory is watched, writing happens on the side."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

_FIRST, _LARGEST = 8, 256
_TURNS = 3
_BETTER = 1.04

Item = TypeVar("Item")


class AdaptiveBatchSize:
    """The number of images in a forward pass: as told, else found by trying, on the work itself.

    Each size is tried a few times and counted by its fastest; the next is twice as large, until that is no faster.
    Larger batches than needed cost memory and, on a processor, time.

    Args:
        told: the size; None: to be found.
        clock: seconds from some moment on.
    """

    def __init__(self, told: int | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.size = told or _FIRST
        """How many images the next pass takes."""
        self.settled = told is not None
        """Whether the size stays as it is."""
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
        """Take half of that from now on: there is not enough memory for more."""
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
    """Does something with items in a thread of its own, in order, a few behind whoever hands them over.

    Args:
        work: what to do with each.
        waiting: how many may wait.
    """

    def __init__(self, work: Callable[[Item], object], *, waiting: int = 1) -> None:
        self._work = work
        self._queue: queue.Queue[Item | None] = queue.Queue(waiting)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write")

    def put(self, item: Item) -> None:
        """Hand an item over; waits where too many wait already.

        Raises:
            BaseException: what the work on an earlier item failed with; no later one was worked on.
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
        """Wait until everything is done, also after Ctrl-C: what was handed over is not lost."""
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure


def peak_memory() -> int | None:
    """The most memory that this process has held at once, in bytes, mapped files included; None if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
