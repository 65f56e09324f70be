"""What stays in memory between two commands: one encoder, and the indexes that were searched last."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from llm2clip.indexer.core.index_paths import locate
from llm2clip.retrieval.searcher import Searcher

if TYPE_CHECKING:
    from llm2clip.indexer import Progress

_Times = tuple[tuple[str, int, int, int], ...]
"""Path, inode, nanoseconds and size of files."""


@final
@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A searcher and what it was opened from."""

    asked: tuple[object, ...]
    """Everything that says which indexes and which encoder were meant."""
    loaded_from: tuple[object, ...]
    """Everything that the encoder was loaded from."""
    searcher: Searcher


@final
class WarmSearchers:
    """Opens searchers and keeps the last one. Not for several threads."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def open(
        self,
        index_path: Sequence[str | os.PathLike[str]] | None = None,
        *,
        encoder: str | None = None,
        device: str = "auto",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> AbstractContextManager[Searcher]:
        """As ``Searcher.open``: what did not change since the last time is open already, and stays open."""
        places = [locate(each) for each in index_path] if index_path else [locate()]
        asked = (
            *places,
            encoder,
            device,
            os.getcwd(),
            os.environ.get("LLM2CLIP_HOME"),
            os.environ.get("HOME"),
        )
        kept = self._kept
        current = (
            kept is not None
            and kept.asked == asked
            and not any(index.changed() for index in kept.searcher.indexes)
        )
        if (
            kept is not None
            and current
            and kept.loaded_from == _sources(kept.searcher, encoder, device=device)
        ):
            # A new one, since a searcher gives some warnings once.
            return nullcontext(Searcher(kept.searcher.indexes, encoder=kept.searcher.encoder, device=device))
        opened = Searcher.open(index_path, encoder=encoder, device=device, on_progress=on_progress)
        loaded_from = _sources(opened, encoder, device=device)
        if kept is not None and loaded_from == kept.loaded_from:
            opened = Searcher(opened.indexes, encoder=kept.searcher.encoder, device=device)
        self._kept = _Kept(asked=asked, loaded_from=loaded_from, searcher=opened)
        if kept is not None:
            kept.searcher.close()
        return nullcontext(opened)

    def names(self) -> list[str]:
        """What is kept, in words."""
        if self._kept is None:
            return []
        searcher = self._kept.searcher
        return [
            *(f"index {index.path}" for index in searcher.indexes),
            f"encoder {searcher.index.manifest.encoder['name']}",
        ]


def _sources(searcher: Searcher, encoder: str | None, *, device: str) -> tuple[object, ...]:
    """What the encoder of a searcher is loaded from: its files as they are now, and the device."""
    from llm2clip.encoders.core.errors import ModelError
    from llm2clip.encoders.registry import resolve

    name = encoder or searcher.index.manifest.encoder_source
    path = None
    with suppress(ModelError):  # loading says what is wrong
        path = resolve(name).path
    files = [] if path is None else sorted(path.rglob("*")) if path.is_dir() else [path]
    return name, device, os.environ.get("LLM2CLIP_HOME"), _times(files)


def _times(files: Sequence[Path]) -> _Times:
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        found.append((str(file), status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)
