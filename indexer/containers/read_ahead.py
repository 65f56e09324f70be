"""``ReadAheadGroup``: neighbouring images that are read together, as one by one would take far longer.

A row of a compressed table or a frame of a video cannot be read without what lies before it. The first record of a
group that is read reads the whole group; each image is released once it was taken. A few groups stay in memory; the
oldest is dropped, and its other images are read one by one.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, final

MAX_GROUPS = 6
"""Maximum number of groups in memory; two per image column of a table are in use at once."""
_loaded: deque[weakref.ref[ReadAheadGroup]] = deque()
_guard = threading.Lock()
_serials = count()
_groups: weakref.WeakValueDictionary[int, ReadAheadGroup] = weakref.WeakValueDictionary()


@final
class ReadAheadGroup:
    """Some neighbouring images of a container.

    ``load`` reads all of them, in order, with an exception for each that cannot be read; ``one`` reads one by its
    number when it is no longer in memory.
    """

    def __init__(
        self, load: Callable[[], Sequence[bytes | Exception]], *, one: Callable[[int], bytes]
    ) -> None:
        self._load, self._one = load, one
        self._lock = threading.Lock()
        self._waiting: dict[int, bytes | Exception] | None = None
        self._serial = next(_serials)
        _groups[self._serial] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by number, so that records unpickled in the same process share their group again."""
        return _group, (self._serial, self._load, self._one)

    def take(self, number: int) -> bytes:
        """The encoded image of a number, from 0; safe from several threads."""
        with self._lock:
            new = self._waiting is None
            if self._waiting is None:
                self._waiting = dict(enumerate(self._load()))
            content = self._waiting.pop(number, None)
            new = new and bool(self._waiting)
        if new:
            _make_room(self)
        if content is None:
            return self._one(number)
        if isinstance(content, Exception):
            raise content
        return content

    def drop(self) -> None:
        """Release what is in memory."""
        with self._lock:
            self._waiting = {}

    @property
    def waiting(self) -> int:
        """Number of images in memory."""
        return len(self._waiting or ())


def _group(
    serial: int, load: Callable[[], Sequence[bytes | Exception]], one: Callable[[int], bytes]
) -> ReadAheadGroup:
    with _guard:
        found = _groups.get(serial)
        if found is None:
            found = ReadAheadGroup(load, one=one)
            found._serial = serial
            _groups[serial] = found
        return found


def _make_room(group: ReadAheadGroup) -> None:
    with _guard:
        alive = [each for each in _loaded if (known := each()) is not None and known.waiting]
        _loaded.clear()
        _loaded.extend([*alive, weakref.ref(group)])
        old = [_loaded.popleft()() for _ in range(len(_loaded) - MAX_GROUPS)]
    for each in old:
        if each is not None:
            each.drop()
