"""The best rows of an index for some queries: what the derived structure proposes, what came since, what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann import Candidates
from llm2clip.indexer.ranking import SLACK, exact_scores
from llm2clip.indexer.segments import Vectors

Found = list[tuple[int, float]]
"""(id, score), best first, equal scores by id."""
SCANNED_ROWS = 4_096
"""Where a filter lets through no more rows than this, they are all compared: faster than any structure, and exact."""
_AT_MOST = 8_192
_BLOCK = 4_096


@dataclass(frozen=True, kw_only=True)
class Searched:
    """Where to look."""

    vectors: Vectors
    """The stored rows."""
    ann: Candidates | None
    """The derived structure; None: every row is scanned."""
    covered: int
    """How many rows it covers, from id 0."""
    allowed: NDArray[np.bool_] | None
    """Which rows may be found, all if None. Shape: (rows,), bool."""

    def __post_init__(self) -> None:
        assert self.allowed is None or len(self.allowed) == len(self.vectors)

    @property
    def count(self) -> int:
        """How many rows may be found."""
        return len(self.vectors) if self.allowed is None else int(np.count_nonzero(self.allowed))


def nearest(where: Searched, queries: NDArray[np.float32], *, k: int) -> list[Found]:
    """The best ``k`` rows of each query among those that are allowed; fewer where there are fewer.

    Scores are computed from the stored rows (``ranking.py``). With an exact structure, or none, the answer is that of a
    brute force.

    Args:
        where: the index.
        queries: Shape: (n, dim), float32.
        k: how many to find, at least 1.
    """
    total = where.count
    k = min(k, total)
    if k == 0:
        return [[] for _ in queries]
    if where.ann is None or total <= max(SCANNED_ROWS, k) < where.covered:
        return [scan(where, query, k=k) for query in queries]
    found = _merged(where, queries, k=k, count=k + 8)
    answers: list[Found] = []
    for number, hits in enumerate(found):
        count = k + 8
        while hits is None:
            count *= 8
            query = queries[number : number + 1]
            hits = (
                scan(where, query[0], k=k) if count > _AT_MOST else _merged(where, query, k=k, count=count)[0]
            )
        answers.append(hits)
    return answers


def _merged(where: Searched, queries: NDArray[np.float32], *, k: int, count: int) -> list[Found | None]:
    """For each query its best rows; None where a row that was left out could belong among them."""
    assert where.ann is not None
    covered, allowed = where.covered, where.allowed
    below = None if allowed is None else allowed[:covered]
    if below is not None and below.all():
        below = None
    there = covered if below is None else int(np.count_nonzero(below))
    scores, ids = where.ann.candidates(queries, count=min(count, max(there, 1)), allowed=below)
    parts = [_part(scores, ids, there=there)]
    if covered < len(where.vectors):
        parts.append(_tail(where, queries, count=count))
    exact = where.ann.exact
    found: list[Found | None] = []
    for number, query in enumerate(queries):
        mine = np.concatenate([part.ids[number] for part in parts])
        mine = mine[mine >= 0]
        cut = max(part.cut[number] for part in parts)
        here = exact_scores(where.vectors.take(mine), query)
        order = np.lexsort((mine, -here))[:k]
        short = len(order) < k
        left_out = cut + SLACK >= here[order[-1]] if exact and not short else False
        if left_out or (short and (exact or count <= _AT_MOST)):
            found.append(None)
        else:
            found.append(list(zip(mine[order].tolist(), here[order].tolist(), strict=True)))
    return found


@dataclass(frozen=True, kw_only=True)
class _Part:
    ids: NDArray[np.int64]  # (n, m), -1: none
    cut: NDArray[np.float32]  # (n,): rows that were left out have scores no higher, but for rounding


def _part(scores: NDArray[np.float32], ids: NDArray[np.int64], *, there: int) -> _Part:
    cut = np.full(len(ids), -np.inf, dtype=np.float32)
    if ids.shape[1] < there:
        full = (ids >= 0).all(axis=1)
        cut[full] = scores[full, -1]
    return _Part(ids=ids, cut=cut)


def _tail(where: Searched, queries: NDArray[np.float32], *, count: int) -> _Part:
    """The best of the rows that the structure does not cover, by float32 products."""
    best_ids = np.full((len(queries), 0), -1, dtype=np.int64)
    best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
    left_out = False
    for ids, rows in _blocks(where, start=where.covered):
        scores = queries @ rows.astype(np.float32).T
        scores = np.concatenate([best, scores], axis=1)
        numbers = np.concatenate([best_ids, np.broadcast_to(ids, (len(queries), len(ids)))], axis=1)
        if scores.shape[1] > count:
            left_out = True
            keep = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            scores = np.take_along_axis(scores, keep, axis=1)
            numbers = np.take_along_axis(numbers, keep, axis=1)
        best, best_ids = scores, numbers
    none = np.full(len(queries), -np.inf, dtype=np.float32)
    return _Part(ids=best_ids, cut=best.min(axis=1) if left_out else none)


def scan(where: Searched, query: NDArray[np.float32], *, k: int) -> Found:
    """The best ``k`` of all rows that are allowed, by brute force in bounded memory.

    Args:
        where: the index.
        query: Shape: (dim,), float32.
        k: how many to find.
    """
    best_ids, best = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    for ids, rows in _blocks(where, start=0):
        numbers = np.concatenate([best_ids, ids])
        scores = np.concatenate([best, exact_scores(rows, query)])
        order = np.lexsort((numbers, -scores))[:k]
        best_ids, best = numbers[order], scores[order]
    return list(zip(best_ids.tolist(), best.tolist(), strict=True))


def _blocks(where: Searched, *, start: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    """Rows from id ``start`` that may be found, in blocks: ids (n,), rows (n, dim)."""
    vectors, allowed = where.vectors, where.allowed
    if allowed is None:
        for first, rows in vectors.blocks(_BLOCK, start=start):
            yield np.arange(first, first + len(rows)), rows
        return
    ids = np.flatnonzero(allowed[start:]) + start
    for first in range(0, len(ids), _BLOCK):
        some = ids[first : first + _BLOCK]
        yield some, vectors.take(some)
