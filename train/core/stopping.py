"""SIGTERM and Ctrl-C while training: the step under way is given up and the run checkpoints at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequestedError(BaseException):
    """Raised inside a step by a signal; not an ``Exception``, so that nothing below handles it."""


class StopSignals:
    """Turns SIGTERM and SIGINT into a request to stop, and interrupts a step where that is safe."""

    def __init__(self, *, interrupt: bool) -> None:
        """Create; without ``interrupt`` a step under way is finished first, as several processes need it."""
        self.requested: signal.Signals | None = None
        self._interrupt, self._open = interrupt, False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the signals are handled here; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {
            number: signal.signal(number, self._received) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises ``StopRequestedError``: no weight may change here."""
        self._open = True
        try:
            if self.requested and self._interrupt:
                raise StopRequestedError
            yield
        finally:
            self._open = False

    def _received(self, number: int, _frame: FrameType | None) -> None:
        first = self.requested is None
        self.requested = signal.Signals(number)
        if first and self._open and self._interrupt:
            raise StopRequestedError
