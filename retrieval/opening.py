"""Opens the indexes that are searched together, and loads the encoder that they were built with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm2clip.indexer.core.errors import EncoderMismatchError, IndexerError
from llm2clip.indexer.core.index_paths import Place, locate, require_named_encoder

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.indexer import Progress, SearchableIndex

Source = str | os.PathLike[str]
"""Name or folder of an encoder."""


def open_indexes(
    index_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    *,
    encoder: Encoder | Source | None,
    device: str,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[list[SearchableIndex], Encoder | Source | None]:
    """The indexes that ``Searcher.open`` is told of, each once, and the encoder, which the sample's comes with."""
    told: list[str | os.PathLike[str] | None] = (
        list(index_path) if isinstance(index_path, list | tuple) else [index_path]  # type: ignore[list-item]
    )
    if not told:
        raise ValueError("got no index to search: name at least one, or None for the default one")
    opened: list[SearchableIndex] = []
    try:
        for place in _distinct(map(locate, told)):
            if place.sample:
                sample, encoder = _open_sample(encoder, device=device, on_progress=on_progress)
                opened.append(sample)
            else:
                from llm2clip.indexer.engines.opening import open_anywhere

                opened.append(
                    open_anywhere(place.path, device=device if device.startswith("cuda") else "cpu")
                )
    except BaseException:
        for each in opened:
            each.close()
        raise
    return opened, encoder


def load_encoder_of(index: SearchableIndex, *, source: Source | None, device: str) -> Encoder:
    """Load the encoder of an index, from ``source`` or else from where the index says.

    Raises:
        ModelError: It cannot be loaded.
        IndexerError: Only the index names it, and that comes from another machine.
        EncoderMismatchError: It is not the one the index was built with.
    """
    from llm2clip.encoders import ModelError, load_encoder

    manifest = index.manifest
    if source is None:
        _require_named(manifest.encoder_source, index)
    try:
        loaded = load_encoder(source or manifest.encoder_source, device=device)
    except (ValueError, OSError) as error:
        if source is not None:
            raise
        problem = ModelError(
            f"{index.path} was built with encoder '{manifest.encoder['name']}', which cannot be loaded: {error}; "
            "if it was moved, name it with --encoder"
        )
        for note in getattr(error, "__notes__", ()):
            problem.add_note(note)
        problem.add_note(
            "meanwhile: llm2clip-index info and remove work, and indexes of encoders that are here"
        )
        raise problem from error
    index.require_encoder(loaded.info)
    return loaded


def _require_named(encoder: str, index: SearchableIndex) -> None:
    """Refuse to load what only an index of someone else names, unless it is in our catalogue."""
    try:
        require_named_encoder(encoder, index=index.path)
    except IndexerError:
        from llm2clip.encoders.catalog.entries import find_encoder

        if find_encoder(encoder) is None:
            raise


def _distinct(places: Iterable[Place]) -> list[Place]:
    """The places, each index once."""
    return list({_real(place): place for place in places}.values())


def _real(place: Place) -> object:
    return os.path.realpath(place.path) if isinstance(place.path, Path) else place.path


def require_same_encoder(first: SearchableIndex, other: SearchableIndex) -> None:
    """Refuse two indexes whose scores cannot be compared."""
    from llm2clip.indexer.storage.manifest import encoder_mismatch

    if encoder_mismatch(first.manifest.encoder, other.manifest.encoder):
        names = [str(index.manifest.encoder["name"]) for index in (first, other)]
        which = f"{names[0]} and {names[1]}" if names[0] != names[1] else f"different versions of {names[0]}"
        raise EncoderMismatchError(
            f"{first.path} and {other.path} were built with {which}, whose scores cannot be compared: search them one "
            f"at a time, or re-encode one with  llm2clip-index build --from INDEX --encoder {names[0]}"
        )


def _open_sample(
    encoder: Encoder | str | os.PathLike[str] | None,
    *,
    device: str,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[SearchableIndex, Encoder]:
    """The sample's index, built if needed, and its encoder."""
    from llm2clip.encoders import load_encoder
    from llm2clip.retrieval.sample_index import open_sample, sample_encoder

    if encoder is None or isinstance(encoder, str | os.PathLike):
        encoder = load_encoder(encoder or sample_encoder(), device=device)
    return open_sample(encoder, on_progress=on_progress), encoder
