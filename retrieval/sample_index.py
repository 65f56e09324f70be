"""The index of the sample images, which is built when it is first searched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from llm2clip import encoders, indexer
from llm2clip.indexer.core.errors import CorpusError, EncoderMismatchError, IndexerError
from llm2clip.indexer.core.index_paths import SAMPLE, sample_index_path, sample_shards
from llm2clip.indexer.core.results import BuildOptions, Progress
from llm2clip.indexer.storage.manifest import encoder_mismatch, read_manifest

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.indexer import Index

SAMPLE_ENCODER = "nano"
"""The encoder that knows the sample images."""
_MANIFEST = "manifest.json"


def sample_encoder() -> str:
    """Name or folder of the encoder of the existing sample index, else ``nano``."""
    try:
        return read_manifest(sample_index_path()).encoder_source
    except IndexerError:
        return SAMPLE_ENCODER


def open_sample(
    encoder: Encoder, *, path: Path | None = None, on_progress: Callable[[Progress], None] | None = None
) -> Index:
    """Open the sample's index; build it first if it is missing, damaged or out of date.

    At the default path, which all searches share, it is built for ``nano`` only: another encoder must match the
    existing index. ``on_progress`` is called while the index is built.
    """
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
        raise CorpusError(
            "this installation has no sample images; build an index of your own with  llm2clip-index build FOLDER"
        )
    options = BuildOptions(overwrite=not fits, on_progress=on_progress)
    indexer.build_index(SAMPLE, place, encoder=encoder, options=options)
    # A build without changes leaves the manifest alone: mark it as checked.
    os.utime(place / _MANIFEST)
    return indexer.open_index(place)


def _open_if_whole(path: Path) -> Index | None:
    try:
        return indexer.open_index(path)
    except IndexerError:
        return None


def _mismatch(index: Index, encoder: Encoder) -> EncoderMismatchError | None:
    try:
        index.require_encoder(encoder.info)
    except EncoderMismatchError as error:
        return error
    return None


def _is_shipped(encoder: Encoder) -> bool:
    """Whether it is the ``nano`` of this installation, by hash and not by name."""
    return (
        encoder_mismatch(encoders.load_encoder(SAMPLE_ENCODER).info.identity(), encoder.info.identity())
        is None
    )


def _not_for(encoder: Encoder) -> EncoderMismatchError:
    return EncoderMismatchError(
        f"the sample images are indexed with encoder '{SAMPLE_ENCODER}', got '{encoder.info.name}': index them "
        f"for it first, with  llm2clip-index build sample: --encoder {quote(encoder.info.name)} --index PATH"
    )


def _newer_than_the_sample(path: Path) -> bool:
    built = (path / _MANIFEST).stat().st_mtime_ns
    return all(shard.stat().st_mtime_ns <= built for shard in sample_shards())
