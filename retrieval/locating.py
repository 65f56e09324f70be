"""Which index a search means: the one named, the one built last, or the sample's, built when first wanted."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.indexer import Index, Progress

VARIABLE = "LLM2CLIP_INDEX"
"""Environment variable that names the index to search."""
SAMPLE_ENCODER = "nano"
"""The encoder that knows the sample pictures."""

_MANIFEST = "manifest.json"
_OWN = "build one of your own pictures with  llm2clip-index build FOLDER"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an index is, and why it is that one."""

    path: Path
    """Its folder."""
    sample: bool
    """Whether it is the one of the sample corpus, which can be built at any time."""
    fallback: bool = False
    """Whether nobody asked for it: nothing else was said and nothing of one's own was built."""


def locate(index: str | os.PathLike[str] | None = None) -> Place:
    """Choose the index: ``index``, else ``LLM2CLIP_INDEX``, else the one built last, else the sample's.

    ``"sample:"`` names the sample's.

    Raises:
        IndexNotFoundError: The index that ``LLM2CLIP_INDEX`` names or that was built last is no longer there.
    """
    from llm2clip.indexer.location import SAMPLE, current_index, sample_index_path

    told = index if index is not None else os.environ.get(VARIABLE) or None
    if told is None:
        last = current_index()
        if last is None:
            return Place(path=sample_index_path(), sample=True, fallback=True)
        _require(last, f"the index built last, {last}, is no longer there")
        return Place(path=last, sample=last == sample_index_path())
    if os.fspath(told) == SAMPLE:
        return Place(path=sample_index_path(), sample=True)
    path = Path(told).expanduser()
    if index is None:
        _require(path, f"{VARIABLE} names {path}, which does not exist")
    return Place(path=path, sample=False)


def _require(path: Path, problem: str) -> None:
    from llm2clip.indexer.errors import IndexNotFoundError

    if not path.exists():
        raise IndexNotFoundError(
            f"{problem}: name another with --index PATH, {_OWN}, or search the sample with --index sample:"
        )


def open_sample(
    encoder: Encoder, *, path: Path | None = None, on_progress: Callable[[Progress], None] | None = None
) -> Index:
    """Open the sample's index, building it first where it is missing, damaged or out of date.

    Args:
        encoder: ``nano``, or whatever shall index the sample.
        path: Folder of its index; ``None`` for the usual place.
        on_progress: Called while the index is built, which takes some seconds and happens once.

    Raises:
        CorpusError: This installation has no sample pictures.
        OSError: The index cannot be written.
    """
    from llm2clip.indexer import BuildOptions, build_index, open_index
    from llm2clip.indexer.errors import CorpusError
    from llm2clip.indexer.location import SAMPLE, sample_index_path, sample_shards

    path = path or sample_index_path()
    fitting = _open_if_fitting(path, encoder)
    if fitting is not None and _newer_than_the_sample(path):
        return fitting
    if not sample_shards():
        raise CorpusError(f"this installation has no sample pictures; {_OWN}")
    options = BuildOptions(overwrite=fitting is None, on_progress=on_progress)
    build_index(SAMPLE, path, encoder=encoder, options=options)
    # A build that found nothing to do leaves the manifest as it was: note that it was looked at.
    os.utime(path / _MANIFEST)
    return open_index(path)


def _open_if_fitting(path: Path, encoder: Encoder) -> Index | None:
    from llm2clip.indexer import IndexerError, open_index

    try:
        index = open_index(path)
        index.require_encoder(encoder.info)
    except IndexerError:
        return None
    return index


def _newer_than_the_sample(path: Path) -> bool:
    from llm2clip.indexer.location import sample_shards

    built = (path / _MANIFEST).stat().st_mtime_ns
    return all(shard.stat().st_mtime_ns <= built for shard in sample_shards())
