"""Recall through an index beside an exact scan of the encoder's own vectors; images are recognised by content."""

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
from llm2clip.eval.results.records import IndexRecall, RecallLoss

if TYPE_CHECKING:
    from llm2clip.encoders import EncoderInfo
    from llm2clip.eval.datasets.retrieval_set import RetrievalSet
    from llm2clip.eval.runner.measure import Vectors
    from llm2clip.indexer import Index

_QUERIES = 256
_FOREIGN = -1
"""Stands for an image that is not of the set."""


def measure_index(
    path: Path,
    dataset: RetrievalSet,
    vectors: Vectors,
    *,
    info: EncoderInfo,
    ks: Sequence[int],
    where: str | None = None,
) -> IndexRecall:
    """Search an index for every caption; under a filter for the captions of images that pass it."""
    from llm2clip.indexer import open_index

    digests = vectors.images.digests
    number = {digest: row for row, digest in enumerate(dict.fromkeys(digests))}
    content = np.array([number[digest] for digest in digests])
    with open_index(path) as index:
        index.require_encoder(info)
        if len(index) < len(number):
            raise DatasetError(
                f"{path} holds {len(index):,} images, {dataset.id} has {len(number):,} different ones: build an "
                "index over all of them"
            )

        @cache
        def content_of(id: int) -> int:
            return number.get(hashlib.sha256(index.read_image(id)).hexdigest(), _FOREIGN)

        passing = _passing(index, where, content_of) if where is not None else set(number.values())
        right = [{int(content[image]) for image in images} & passing for images in dataset.caption_images]
        asked = [caption for caption, images in enumerate(right) if images]
        if not asked:
            raise DatasetError(f"no image of {dataset.id} in {path} passes the filter {where!r}")
        queries = vectors.texts.vectors[asked]
        found, seconds = _ask(index, queries, max(ks), content_of=content_of, where=where)
        known = index.info()
    here = np.isin(content, sorted(passing))
    exact = _full_scan(vectors.images.vectors[here], queries, content[here], max(ks))
    _require_known(found, exact, path=path, dataset=dataset)
    right = [right[caption] for caption in asked]
    return IndexRecall(
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
    index: Index, queries: NDArray[np.float32], k: int, *, content_of: Callable[[int], int], where: str | None
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
    found: NDArray[np.int64], exact: NDArray[np.int64], *, path: Path, dataset: RetrievalSet
) -> None:
    """Refuse an index over other images: its answers would be counted as losses."""
    if not np.isin(found, exact).any():
        raise DatasetError(
            f"none of the answers of {path} is an image of {dataset.id}, expected an index over its images"
        )


def _loss(
    k: int, exact: NDArray[np.int64], found: NDArray[np.int64], right: Sequence[set[int]]
) -> RecallLoss:
    def recall(answers: NDArray[np.int64]) -> float:
        return float(
            np.mean([bool(own & set(row[:k].tolist())) for own, row in zip(right, answers, strict=True)])
        )

    same = [
        sum((Counter(a[:k].tolist()) & Counter(b[:k].tolist())).values()) / min(k, exact.shape[1])
        for a, b in zip(exact, found, strict=True)
    ]
    return RecallLoss(k=k, exact=recall(exact), index_recall=recall(found), overlap=float(np.mean(same)))
