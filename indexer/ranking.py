"""Exact scores and order. FAISS proposes candidates; what is said about them is computed here, from the stored rows.

A score is the inner product of a float32 query and a stored float16 row, summed in float64 and rounded to float32:
the same for equal rows wherever they lie and however many queries are asked at once, which FAISS's sums are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.segments import Rows, Vectors

SLACK = 1e-5
"""More than FAISS's float32 sums of unit vectors can be off."""


def exact_scores(rows: Rows, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score of each row with the query beside it. Shapes: (n, dim) float16, (n, dim) or (dim,) float32 -> (n,)."""
    products = rows.astype(np.float64)
    products *= queries
    sums: NDArray[np.float32] = products.sum(axis=1).astype(np.float32)
    return sums


def settle(
    vectors: Vectors,
    queries: NDArray[np.float32],
    candidates: Sequence[NDArray[np.int64]],
    scores: NDArray[np.float32],
    *,
    k: int,
) -> list[list[tuple[int, float]] | None]:
    """Rank candidates by exact score, equal scores by id, and keep the best ``k`` of each query.

    Args:
        vectors: the stored rows.
        queries: Shape: (n, dim), float32.
        candidates: for each query the ids that FAISS found nearest, (up to m,), int64.
        scores: FAISS's scores of them, falling. Shape: (n, m), float32.
        k: how many to keep.

    Returns:
        For each query (id, score), best first; None where a row that FAISS left out could belong among them.
    """
    found = np.concatenate(candidates) if len(candidates) > 1 else candidates[0]
    lengths = [len(ids) for ids in candidates]
    against = queries[0] if len(queries) == 1 else np.repeat(queries, lengths, axis=0)
    exact = exact_scores(vectors.take(found), against)
    settled: list[list[tuple[int, float]] | None] = []
    start = 0
    for number, length in enumerate(lengths):
        ids, here = found[start : start + length], exact[start : start + length]
        start += length
        order = np.lexsort((ids, -here))[:k]
        left_out = length < len(vectors) and scores[number, length - 1] + SLACK >= here[order[-1]]
        settled.append(
            None if left_out else list(zip(ids[order].tolist(), here[order].tolist(), strict=True))
        )
    return settled


def exact_scan(vectors: Vectors, query: NDArray[np.float32], *, k: int) -> list[tuple[int, float]]:
    """The best ``k`` rows of all, by brute force in bounded memory: (id, score), best first, equal scores by id.

    Args:
        vectors: the stored rows.
        query: Shape: (dim,), float32.
        k: how many to find.
    """
    best_ids, best = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    for first, rows in vectors.blocks(4096):
        ids = np.concatenate([best_ids, np.arange(first, first + len(rows))])
        scores = np.concatenate([best, exact_scores(rows, query)])
        order = np.lexsort((ids, -scores))[:k]
        best_ids, best = ids[order], scores[order]
    return list(zip(best_ids.tolist(), best.tolist(), strict=True))
