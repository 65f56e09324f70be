"""Exact scores and order. FAISS proposes candidates; what is said about them is computed here, from the stored rows.

A score is the inner product of a float32 query and a stored float16 row, summed in float64 and rounded to float32:
the same for equal rows wherever they lie and however many queries are asked at once, which FAISS's sums are not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.segments import Rows, Vectors

_BLOCK = 128

Ranked = list[tuple[int, float]]
"""(id, score), best first, equal scores by id."""

SLACK = 1e-5
"""More than FAISS's float32 sums of unit vectors can be off."""


def exact_scores(rows: Rows, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score of each row with the query beside it. Shapes: (n, dim) float16, (n, dim) or (dim,) float32 -> (n,)."""
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):  # so few that their doubles stay in the cache
        part = slice(start, start + _BLOCK)
        products = rows[part].astype(np.float64)
        products *= queries if queries.ndim == 1 else queries[part]
        scores[part] = products.sum(axis=1)
    return scores


def rank(vectors: Vectors, queries: NDArray[np.float32], ids: NDArray[np.int64], *, k: int) -> list[Ranked]:
    """Rank proposed rows by exact score, equal scores by id, and keep the best ``k`` of each query.

    Args:
        vectors: the stored rows.
        queries: Shape: (n, dim), float32.
        ids: proposed rows of each query, none of them twice, -1: none. Shape: (n, m), int64.
        k: how many to keep.
    """
    if len(queries) == 1:
        [mine] = ids
        mine = mine[mine >= 0]
        exact = exact_scores(vectors.take(mine), queries[0])
        best = np.lexsort((mine, -exact))[:k]
        return [_pairs(mine[best], exact[best])]
    there = ids >= 0
    scores = np.full(ids.shape, -np.inf, dtype=np.float32)
    scores[there] = exact_scores(vectors.take(ids[there]), queries[np.nonzero(there)[0]])
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    counts: list[int] = (ids >= 0).sum(axis=1).tolist()
    return [_pairs(ids[i, :n], scores[i, :n]) for i, n in enumerate(counts)]


def _pairs(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> Ranked:
    return list(zip(ids.tolist(), scores.tolist(), strict=True))
