"""Choosing the index to search: by path, by name, the default one, else the sample's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.indexer import Index

INDEX_VARIABLE = "LLM2CLIP_INDEX"
"""Environment variable that names the index to search."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The index that was chosen."""

    path: Path
    """Folder of the index."""
    sample: bool
    """Whether it is the index of the sample images, which can be built at any time."""
    fallback: bool = False
    """Whether it is the sample because no index was named and none has been built."""


def locate(index: str | os.PathLike[str] | None = None) -> Place:
    """Choose the index: ``index``, else ``LLM2CLIP_INDEX``, else the one built last, else the sample's.

    ``"sample:"`` names the sample's.

    Raises:
        IndexNotFoundError: The index that ``LLM2CLIP_INDEX`` names, or that was built last, does not exist.
    """
    from llm2clip.indexer.core.index_paths import SAMPLE, current_index, sample_index_path

    told = index if index is not None else os.environ.get(INDEX_VARIABLE) or None
    if told is None:
        last = current_index()
        if last is None:
            return Place(path=sample_index_path(), sample=True, fallback=True)
        _require(last, f"the index built last, {last}, no longer exists")
        return Place(path=last, sample=last == sample_index_path())
    if os.fspath(told) == SAMPLE:
        return Place(path=sample_index_path(), sample=True)
    path = Path(told).expanduser()
    if index is None:
        _require(path, f"{INDEX_VARIABLE} names {path}, which does not exist")
    return Place(path=path, sample=False)


def _require(path: Path, problem: str) -> None:
    from llm2clip.indexer.core.errors import IndexNotFoundError

    if not path.exists():
        raise IndexNotFoundError(
            f"{problem}: name another with --index PATH, build one of your own images with  llm2clip-index build "
            "FOLDER, or search the sample with --index sample:"
        )


def distinct(places: Iterable[Place]) -> list[Place]:
    """The places, each index once."""
    return list({os.path.realpath(place.path): place for place in places}.values())


def require_same_encoder(first: Index, other: Index) -> None:
    """Refuse two indexes whose scores cannot be compared."""
    from llm2clip.indexer.core.errors import EncoderMismatchError
    from llm2clip.indexer.storage.manifest import encoder_mismatch

    if encoder_mismatch(first.manifest.encoder, other.manifest.encoder):
        names = [str(index.manifest.encoder["name"]) for index in (first, other)]
        which = f"{names[0]} and {names[1]}" if names[0] != names[1] else f"different versions of {names[0]}"
        raise EncoderMismatchError(
            f"{first.path} and {other.path} were built with {which}, whose scores cannot be compared: search them one "
            f"at a time, or re-encode one with  llm2clip-index build --from INDEX --encoder {names[0]}"
        )
