"""The newest generation of an index, taken up while requests go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.indexer import SearchableIndex
    from llm2clip.indexer.core.address import Address
    from llm2clip.retrieval.service.telemetry import Telemetry


@final
@dataclass(eq=False)
class _Opened:
    """An open generation, and how many requests use it."""

    index: SearchableIndex
    users: int = 0
    retired: bool = False


@final
class LiveIndex:
    """An index that is open in its newest generation. Safe to use from several threads."""

    def __init__(self, path: Path | Address, *, encoder: Encoder, device: str, telemetry: Telemetry) -> None:
        self.path, self._encoder, self._device, self._telemetry = path, encoder, device, telemetry
        self._lock = threading.Lock()
        self._current = self._open()

    @contextmanager
    def newest(self) -> Iterator[SearchableIndex]:
        """The newest generation; an older one stays open for as long as a request uses it."""
        with self._lock:
            self._renew()
            opened = self._current
            opened.users += 1
        try:
            yield opened.index
        finally:
            with self._lock:
                opened.users -= 1
                if opened.retired and not opened.users:
                    opened.index.close()

    def close(self) -> None:
        """Close the index once no request uses it."""
        with self._lock:
            self._retire()

    def _open(self) -> _Opened:
        from llm2clip.indexer.engines.opening import open_anywhere

        index = open_anywhere(self.path, device=self._device)
        index.require_encoder(self._encoder.info)
        self._telemetry.generation.set(index.manifest.generation)
        self._telemetry.images.set(len(index))
        return _Opened(index)

    def _renew(self) -> None:
        """Open a new generation if there is one; the old one answers on where the new one cannot be opened."""
        try:
            if not self._current.index.changed():
                return
            renewed = self._open()
        except (OSError, ValueError):
            self._telemetry.rejected.labels("index_unreadable").inc()
            return
        self._retire()
        self._current = renewed

    def _retire(self) -> None:
        self._current.retired = True
        if not self._current.users:
            self._current.index.close()
