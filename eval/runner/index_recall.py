"""Recall end to end: the same questions through an index, beside a full scan of the encoder's own vectors.

The difference is what the index costs: approximation, rounding of stored vectors, images of other sets that lie in
it too. Images are recognised by their content, so an index built from copies elsewhere will do.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.results.records import LossAt, Through

if TYPE_CHECKING:
    from llm2clip.encoders import EncoderInfo
    from llm2clip.eval.datasets.retrieval_set import RetrievalSet
    from llm2clip.eval.runner.measure import Vectors
    from llm2clip.indexer import Index

_QUERIES = 256
_FOREIGN = -1
"""Stands for an image that is not of the set."""


def measure_through(
    place: Path,
    the_set: RetrievalSet,
    vectors: Vectors,
    *,
    info: EncoderInfo,
    ks: Sequence[int],
    where: str | None = None,
) -> Through:
    """Ask every caption through the index in a folder.

    Under a filter both searches are over the images that pass it, and asked are the captions of those.

    Args:
        place: The folder of the index.
        the_set: The images, which should all be in it: one that is not there is never found, and counts as lost.
        vectors: Their and the captions' vectors by the same encoder.
        info: That encoder.
        ks: Lengths of answer lists.
        where: A filter in the language of docs/filters.md; None: every image may be found.

    Raises:
        ValueError: There is no index, it is of another encoder or over other images, it has fewer than the set, or
            no caption has an image that passes the filter.
        OSError: The images that were indexed are no longer there.
    """
    from llm2clip.indexer import open_index

    digests = vectors.images.digests
    number = {digest: place for place, digest in enumerate(dict.fromkeys(digests))}
    content = np.array([number[digest] for digest in digests])
    with open_index(place) as index:
        index.require_encoder(info)
        if len(index) < len(number):
            raise DatasetError(
                f"{place} holds {len(index):,} images, {the_set.id} has {len(number):,} different ones: build an "
                "index over all of them"
            )

        @cache
        def content_of(id: int) -> int:
            return number.get(hashlib.sha256(index.read_image(id)).hexdigest(), _FOREIGN)

        passing = _passing(index, where, content_of) if where is not None else set(number.values())
        right = [{int(content[image]) for image in images} & passing for images in the_set.caption_images]
        asked = [caption for caption, images in enumerate(right) if images]
        if not asked:
            raise DatasetError(f"no image of {the_set.id} in {place} passes the filter {where!r}")
        queries = vectors.texts.vectors[asked]
        found, seconds = _ask(index, queries, max(ks), content_of=content_of, where=where)
        known = index.info()
    here = np.isin(content, sorted(passing))
    exact = _full_scan(vectors.images.vectors[here], queries, content[here], max(ks))
    _require_known(found, exact, place=place, the_set=the_set)
    right = [right[caption] for caption in asked]
    return Through(
        index=known.ann,
        generation=str(known.generation),
        images=known.items,
        at=tuple(_loss(k, exact, found, right) for k in ks),
        milliseconds=1000 * seconds / len(queries),
        where=where or "",
    )


def _passing(index: Index, where: str, content_of: Callable[[int], int]) -> set[int]:
    """Contents of the set that a search of the index under a filter may find."""
    allowed = index.allowed(where)
    ids = range(index.manifest.rows) if allowed is None else np.flatnonzero(allowed).tolist()
    return {content_of(id) for id in ids} - {_FOREIGN}


def _ask(
    index: Index,
    queries: NDArray[np.float32],
    k: int,
    *,
    content_of: Callable[[int], int],
    where: str | None,
) -> tuple[NDArray[np.int64], float]:
    """Contents of the first k answers of the index, and seconds that searching took."""
    found = np.full((len(queries), k), _FOREIGN, dtype=np.int64)
    seconds = 0.0
    for start in range(0, len(queries), _QUERIES):
        began = time.perf_counter()
        answers = index.search(queries[start : start + _QUERIES], k=k, where=where)
        seconds += time.perf_counter() - began
        for row, hits in enumerate(answers, start):
            found[row, : len(hits)] = [content_of(hit.id) for hit in hits]
    return found, seconds


def _full_scan(
    images: NDArray[np.float32], queries: NDArray[np.float32], content: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """Contents of the first k answers by the encoder's own vectors."""
    k = min(k, len(images))
    best = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _QUERIES):
        scores = queries[start : start + _QUERIES] @ images.T
        chosen = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
        best[start : start + len(scores)] = np.take_along_axis(chosen, order, axis=1)
    contents: NDArray[np.int64] = content[best]
    return contents


def _require_known(
    found: NDArray[np.int64], exact: NDArray[np.int64], *, place: Path, the_set: RetrievalSet
) -> None:
    """Refuse an index over other images: its answers would be counted as losses."""
    if not np.isin(found, exact).any():
        raise DatasetError(
            f"none of the answers of {place} is an image of {the_set.id}, expected an index over its images"
        )


def _loss(k: int, exact: NDArray[np.int64], found: NDArray[np.int64], right: Sequence[set[int]]) -> LossAt:
    def recall(answers: NDArray[np.int64]) -> float:
        return float(
            np.mean([bool(own & set(row[:k].tolist())) for own, row in zip(right, answers, strict=True)])
        )

    same = [
        sum((Counter(a[:k].tolist()) & Counter(b[:k].tolist())).values()) / min(k, exact.shape[1])
        for a, b in zip(exact, found, strict=True)
    ]
    return LossAt(k=k, exact=recall(exact), through=recall(found), overlap=float(np.mean(same)))
