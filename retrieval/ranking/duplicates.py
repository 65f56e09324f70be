"""Copies of one image among hits: byte-equal, re-encoded, resized, or a JPEG beside its RAW file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.indexer import Hit, SearchableIndex

ALIKE = 0.97
"""Least cosine of copies that were re-encoded or resized (docs/searching.md has the measurement)."""
SAME_NAME = 0.9
"""Least cosine of files of one name, apart from its ending, in one folder."""
WINDOW = 200
"""Images that a hit is compared with, directly before it: copies have almost equal scores."""
_SHAPE = 0.02
"""Largest difference of aspect ratios of copies."""


def folded(hits: Sequence[Hit], index_of: Callable[[Hit], SearchableIndex]) -> list[Hit]:
    """The hits without copies of better ones, which are the ``duplicates`` of those.

    What is kept of the first hits does not depend on those that follow.
    """
    import numpy as np

    hashes, vectors = _content(hits, index_of)
    kept: list[int] = []
    copies: dict[int, list[Hit]] = {}
    by_hash: dict[bytes, int] = {}
    for position, hit in enumerate(hits):
        first = by_hash.get(hashes[position])
        if first is None and kept:
            before = kept[-WINDOW:]
            cosines = vectors[before] @ vectors[position]
            close = np.flatnonzero(cosines >= SAME_NAME)
            alike = (
                before[place]
                for place in close[np.argsort(-cosines[close], kind="stable")]
                if _are_copies(hits[before[place]], hit, cosines[place])
            )
            first = next(alike, None)
        if first is None:
            kept.append(position)
            by_hash[hashes[position]] = position
        else:
            by_hash.setdefault(hashes[position], first)
            copies.setdefault(first, []).append(hit)
    return [
        replace(hits[position], duplicates=tuple(copies[position])) if position in copies else hits[position]
        for position in kept
    ]


def _are_copies(one: Hit, other: Hit, cosine: float) -> bool:
    """Whether two images of similar vectors are one: not those of a burst, which were taken at different times."""
    if None not in (times := {_capture_time(one), _capture_time(other)}) and len(times) == 2:
        return False
    if abs(one.width * other.height - other.width * one.height) > _SHAPE * one.width * other.height:
        return False
    return cosine >= ALIKE or _stem(one) == _stem(other)


def _capture_time(hit: Hit) -> str | None:
    return None if hit.time_source == "file" else hit.time


def _stem(hit: Hit) -> tuple[str | None, str]:
    """Index, folder and name of an image without its ending, so that ``a/1.jpg`` is the name of ``A/1.CR2``."""
    return hit.index, str(PurePosixPath(hit.key).with_suffix("")).casefold()


def _content(
    hits: Sequence[Hit], index_of: Callable[[Hit], SearchableIndex]
) -> tuple[list[bytes], NDArray[np.float32]]:
    """Content hashes and vectors of hits. Shape: (len(hits), dim), float32."""
    hashes = [b""] * len(hits)
    for index, places in by_index(hits, index_of):
        found = index.hashes([hits[place].id for place in places])
        for place in places:
            hashes[place] = found[hits[place].id]
    return hashes, stored_vectors(hits, index_of)


def stored_vectors(hits: Sequence[Hit], index_of: Callable[[Hit], SearchableIndex]) -> NDArray[np.float32]:
    """The stored vectors of hits. Shape: (len(hits), dim), float32."""
    import numpy as np

    parts = [
        (places, index.take([hits[place].id for place in places]))
        for index, places in by_index(hits, index_of)
    ]
    vectors = np.zeros((len(hits), parts[0][1].shape[1] if parts else 0), dtype=np.float32)
    for places, rows in parts:
        vectors[places] = rows
    return vectors


def by_index(
    hits: Sequence[Hit], index_of: Callable[[Hit], SearchableIndex]
) -> list[tuple[SearchableIndex, list[int]]]:
    """The indexes that hits are from, each with the positions of its hits."""
    found: dict[int, tuple[SearchableIndex, list[int]]] = {}
    for place, hit in enumerate(hits):
        index = index_of(hit)
        found.setdefault(id(index), (index, []))[1].append(place)
    return list(found.values())
