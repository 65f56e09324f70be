"""Exact scores and order. FAISS proposes candidates; what is said about them is computed here, from the stored rows.

A score is the inner product of a float32 query and a stored float16 row, summed in float64 and rounded to float32:
the same for equal rows wherever they lie and however many queries are asked at once, which FAISS's sums are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.storage.vector_segments import Rows, Vectors

_BLOCK = 256
"""Rows widened at once: so few that their doubles stay in the cache."""

Ranked = list[tuple[int, float]]
"""(id, score), best first, equal scores by id."""

_FEW = 64
"""Up to so many candidates are sorted sooner by Python than by NumPy."""

SLACK = 1e-5
"""More than FAISS's float32 sums of unit vectors can be off."""


def _einsum(rows: NDArray[Any], queries: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum("...d,...d->...", rows.astype(np.float64), queries)
    return found


_dots: Callable[[NDArray[Any], NDArray[np.float64]], NDArray[np.float64]] = getattr(np, "vecdot", _einsum)
"""Sums of products of float64 along the last axis, row by row: never through a product of matrices, whose sums depend
on how many rows there are. NumPy has it from 2.0 on."""


def exact_scores(rows: Rows, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score of each row with the query beside it. Shapes: (n, dim) float16, (n, dim) or (dim,) float32 -> (n,)."""
    if len(rows) <= _BLOCK:
        return _dots(rows, queries.astype(np.float64)).astype(np.float32)
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores[part] = _dots(rows[part], (queries if queries.ndim == 1 else queries[part]).astype(np.float64))
    return scores


def rerank(vectors: Vectors, queries: NDArray[np.float32], ids: NDArray[np.int64], *, k: int) -> list[Ranked]:
    """Rank proposed rows by exact score, equal scores by id, and keep the best ``k`` of each query.

    Args:
        vectors: the stored rows.
        queries: Shape: (n, dim), float32.
        ids: proposed rows of each query, none of them twice, -1: none. Shape: (n, m), int64.
        k: how many to keep.
    """
    if len(queries) == 1:
        return [_rank_one(vectors, queries[0], ids[0], k=k)]
    whole = bool((there := ids >= 0).all())
    scores = np.empty(ids.shape, dtype=np.float32)
    step = max(1, _BLOCK // max(1, ids.shape[1]))
    for start in range(0, len(queries), step):
        asked, mine = queries[start : start + step], ids[start : start + step]
        rows = vectors.take((mine if whole else np.maximum(mine, 0)).ravel())
        rows = rows.reshape(*mine.shape, vectors.dim)
        scores[start : start + step] = _dots(rows, asked[:, None].astype(np.float64))
    if not whole:
        scores[~there] = -np.inf
    order = _order(scores, ids)[:, :k]
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    names: Any = ids.tolist()
    numbers: Any = scores.tolist()
    found: list[Ranked] = [list(zip(*each, strict=True)) for each in zip(names, numbers, strict=True)]
    return found if whole else [[hit for hit in hits if hit[0] >= 0] for hits in found]


def _rank_one(vectors: Vectors, query: NDArray[np.float32], ids: NDArray[np.int64], *, k: int) -> Ranked:
    listed = ids.tolist()
    if -1 in listed:
        ids = ids[ids >= 0]
        listed = ids.tolist()
    scores = exact_scores(vectors.take(ids), query)
    if len(listed) <= _FEW:
        nearest = sorted(zip((-scores).tolist(), listed, strict=True))
        return [(id, -score) for score, id in nearest[:k]]
    best = np.lexsort((ids, -scores))[:k]
    return list(zip(ids[best].tolist(), scores[best].tolist(), strict=True))


def _order(scores: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each row, the columns by falling score, equal scores by id."""
    order = np.argsort(-scores, axis=1)
    ranked = np.take_along_axis(scores, order, axis=1)
    tied = (ranked[:, 1:] == ranked[:, :-1]).any(axis=1)
    if tied.any():
        order[tied] = np.lexsort((ids[tied], -scores[tied]), axis=1)
    return order
