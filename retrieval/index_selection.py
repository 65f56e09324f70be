"""Which index a search means: the one named, the one built last, or the sample's, built when first wanted."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.indexer import EncoderMismatchError, Index, Progress

VARIABLE = "LLM2CLIP_INDEX"
"""Environment variable that names the index to search."""
SAMPLE_ENCODER = "nano"
"""The encoder that knows the sample images."""

_MANIFEST = "manifest.json"
_OWN = "build one of your own images with  llm2clip-index build FOLDER"


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
    from llm2clip.indexer.core.index_paths import SAMPLE, current_index, sample_index_path

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
    from llm2clip.indexer.core.errors import IndexNotFoundError

    if not path.exists():
        raise IndexNotFoundError(
            f"{problem}: name another with --index PATH, {_OWN}, or search the sample with --index sample:"
        )


def sample_encoder() -> str:
    """What loads the encoder of the sample's index: that of the index there is, else ``nano``."""
    from llm2clip.indexer import IndexerError
    from llm2clip.indexer.core.index_paths import sample_index_path
    from llm2clip.indexer.storage.manifest import read_manifest

    try:
        return read_manifest(sample_index_path()).encoder_source
    except IndexerError:
        return SAMPLE_ENCODER


def open_sample(
    encoder: Encoder, *, path: Path | None = None, on_progress: Callable[[Progress], None] | None = None
) -> Index:
    """Open the sample's index, building it first where it is missing, damaged or out of date.

    In the usual place, which all searches share, it is built for ``nano`` only: any other encoder must fit the
    index there is.

    Args:
        encoder: ``nano``, or whatever shall index the sample.
        path: Folder of its index; ``None`` for the usual place.
        on_progress: Called while the index is built, which takes some seconds and happens once.

    Raises:
        CorpusError: This installation has no sample images.
        EncoderMismatchError: The index in the usual place is another encoder's.
        OSError: The index cannot be written.
    """
    from llm2clip.indexer import BuildOptions, build_index, open_index
    from llm2clip.indexer.core.errors import CorpusError
    from llm2clip.indexer.core.index_paths import SAMPLE, sample_index_path, sample_shards

    place = path or sample_index_path()
    fits = False
    if opened := _open_if_whole(place):
        problem = _mismatch(opened, encoder)
        fits = problem is None
        if fits and _newer_than_the_sample(place):
            return opened
        opened.close()
        if problem is not None and path is None and not _is_shipped(encoder):
            raise problem
    elif path is None and not _is_shipped(encoder):
        raise _not_for(encoder)
    if not sample_shards():
        raise CorpusError(f"this installation has no sample images; {_OWN}")
    options = BuildOptions(overwrite=not fits, on_progress=on_progress)
    build_index(SAMPLE, place, encoder=encoder, options=options)
    # A build that found nothing to do leaves the manifest as it was: note that it was looked at.
    os.utime(place / _MANIFEST)
    return open_index(place)


def _open_if_whole(path: Path) -> Index | None:
    from llm2clip.indexer import IndexerError, open_index

    try:
        return open_index(path)
    except IndexerError:
        return None


def _mismatch(index: Index, encoder: Encoder) -> EncoderMismatchError | None:
    from llm2clip.indexer import EncoderMismatchError

    try:
        index.require_encoder(encoder.info)
    except EncoderMismatchError as error:
        return error
    return None


def _is_shipped(encoder: Encoder) -> bool:
    """Whether it is the ``nano`` of this installation, and not only one of that name."""
    from llm2clip.encoders import load_encoder
    from llm2clip.indexer.storage.manifest import encoder_mismatch

    return encoder_mismatch(load_encoder(SAMPLE_ENCODER).info.identity(), encoder.info.identity()) is None


def _not_for(encoder: Encoder) -> EncoderMismatchError:
    from llm2clip.indexer import EncoderMismatchError

    return EncoderMismatchError(
        f"the sample images are indexed with encoder '{SAMPLE_ENCODER}', got '{encoder.info.name}': index them "
        f"for it first, with  llm2clip-index build sample: --encoder {quote(encoder.info.name)} --index PATH"
    )


def _newer_than_the_sample(path: Path) -> bool:
    from llm2clip.indexer.core.index_paths import sample_shards

    built = (path / _MANIFEST).stat().st_mtime_ns
    return all(shard.stat().st_mtime_ns <= built for shard in sample_shards())
