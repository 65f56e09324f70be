"""``Chunk``: pictures that are read together, because one by one would take far longer.

A row of a compressed table or a frame of a video cannot be read without what lies before it. The records of such
neighbours share a chunk: the first that is read reads them all, and each is let go as soon as it was asked for, so
that no more of them wait in memory than are about to be needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import final


@final
class Chunk:
    """Some pictures of a container.

    Args:
        load: reads them all, in order; an exception stands for one that cannot be read.
        one: reads one by its number, when it is asked for a second time.
    """

    def __init__(
        self, load: Callable[[], Sequence[bytes | Exception]], *, one: Callable[[int], bytes]
    ) -> None:
        self._load, self._one = load, one
        self._lock = threading.Lock()
        self._waiting: dict[int, bytes | Exception] | None = None

    def take(self, number: int) -> bytes:
        """The encoded picture of a number, from 0; safe from several threads.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        with self._lock:
            if self._waiting is None:
                self._waiting = dict(enumerate(self._load()))
            content = self._waiting.pop(number, None)
        if content is None:
            return self._one(number)
        if isinstance(content, Exception):
            raise content
        return content
