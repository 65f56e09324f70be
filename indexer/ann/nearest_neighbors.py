"""Nearest-neighbour search over all rows of an index: exact, ANN with re-ranking, and ANN under a filter, a class each.

The selectivity rule is static: how a query is answered depends only on the index, the query and its filter. A filter
that allows few rows is answered by an exact scan of them. Otherwise the ANN index is queried for more candidates, with
nprobe or ef_search divided by the selectivity, and those not allowed are dropped; a query that is left with too few,
because what is allowed lies far from it, is answered by the exact scan. docs/filters.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import ExactScan, Found, Ranked, exact_scores, merged, rerank
from llm2clip.indexer.core.results import StoredVectors

SCAN_ROWS = 20_000
"""A filter that allows at most so many rows of the ANN index is answered by an exact scan."""
SCAN_SHARE = 0.02
"""So is one that allows at most this share of its rows."""
OVERFETCH = 2
"""Under a filter, expected number of allowed candidates as a multiple of those that are re-ranked."""
MAX_FILTERED = 32_768
"""A query that would need more candidates under a filter, because of a large k, is answered by an exact scan."""
ANN_BATCH = 1_024
"""Queries per call of an ANN index: in smaller batches FAISS's threads wait for one another."""
_FILTERED_BATCH = 2**22
"""Candidates of all queries per call of an ANN index under a filter: 48 MB of scores and ids."""
_SCAN_BATCH = 256
"""Queries per call of a scan, which holds their scores with a block of rows."""
_MARGIN = 8
"""Candidates beyond k that an exact search re-ranks: float32 sums order near ties differently."""
_WIDEN = 8
_MOST_CANDIDATES = 8_192
_MOST_GPU_CANDIDATES = 2_048

Allowed = NDArray[np.bool_] | None


def post_filtered(search: Callable[[int, float], Found], *, count: int, allowed: NDArray[np.bool_]) -> Found:
    """Candidates of an ANN index under a filter: the allowed ones among more candidates.

    ``search`` returns so many candidates, nearest first, with nprobe or ef_search multiplied by a factor. An id is -1
    where too few of the candidates are allowed. Shapes: allowed (rows,), bool; returned (n, count).
    """
    share = max(int(np.count_nonzero(allowed)), 1) / len(allowed)
    scores, ids = search(min(round(OVERFETCH * count / share), len(allowed)), 1 / share)
    dropped = (ids < 0) | ~allowed[ids]
    order = np.argsort(dropped, axis=1, kind="stable")[:, :count]
    scores, ids = np.where(dropped, np.float32(-np.inf), scores), np.where(dropped, -1, ids)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def is_scanned(allowed: int, rows: int) -> bool:
    """The selectivity rule: whether a filter that allows so many rows of an ANN index is answered by an exact scan."""
    return allowed <= max(SCAN_ROWS, SCAN_SHARE * rows)


class Candidates(Protocol):
    """Proposes rows that are near a query; they are re-ranked by the stored float16 vectors."""

    @property
    def rows(self) -> int:
        """How many rows it covers, from id 0."""

    @property
    def exact(self) -> bool:
        """Whether it compares every row. It then covers all rows of the index."""

    def candidates(self, queries: NDArray[np.float32], *, count: int, allowed: Allowed) -> Found:
        """Scores (n, count) float32 and ids (n, count) int64 of near rows, nearest first; id -1: no more."""

    @property
    def slack(self) -> float:
        """Largest error of its scores."""

    def depth(self, k: int) -> int:
        """How many candidates to re-rank for ``k`` hits."""


@final
class ExactSearch:
    """Exact answers: float32 sums propose a few rows more than requested, and near ties at the edge are searched again.

    Ties beyond ``most`` candidates are settled by ``fallback``, a more precise search, or else by every exact score.
    """

    batch = _SCAN_BATCH

    def __init__(
        self,
        vectors: StoredVectors,
        scan: Candidates | ExactScan,
        *,
        fallback: ExactSearch | None = None,
        most: int = _MOST_CANDIDATES,
    ) -> None:
        self._vectors, self._scan, self._fallback, self._most = vectors, scan, fallback, most

    def search(
        self, queries: NDArray[np.float32], *, k: int, allowed: Allowed = None, total: int
    ) -> list[Ranked]:
        """The best ``k`` of the ``total`` allowed rows for each query; k <= total."""
        count = min(total, k + _MARGIN)
        scores, ids = self._scan.candidates(queries, count=count, allowed=allowed)
        answers = rerank(self._vectors, queries, ids, k=k)
        undecided = list(range(len(queries)))
        while count < total:
            # A row that was not proposed scores at most as much as the last that was, but for rounding.
            last = scores[:, -1] + self._scan.slack
            undecided = [n for n, edge in zip(undecided, last, strict=True) if edge >= answers[n][-1][1]]
            if not undecided:
                break
            count = min(total, count * _WIDEN)
            asked = queries[undecided]
            if count > self._most:
                again = self._settle(asked, k=k, allowed=allowed, total=total)
            else:
                scores, ids = self._scan.candidates(asked, count=count, allowed=allowed)
                again = rerank(self._vectors, asked, ids, k=k)
            for number, hits in zip(undecided, again, strict=True):
                answers[number] = hits
            if count > self._most:
                break
        return answers

    def _settle(self, queries: NDArray[np.float32], *, k: int, allowed: Allowed, total: int) -> list[Ranked]:
        if self._fallback is not None:
            return self._fallback.search(queries, k=k, allowed=allowed, total=total)
        return [_all_scores(self._vectors, query, k=k, allowed=allowed) for query in queries]


def _all_scores(vectors: StoredVectors, query: NDArray[np.float32], *, k: int, allowed: Allowed) -> Ranked:
    """The best ``k`` rows by the exact score of every one: where more rows tie than can be proposed."""
    best: Found = np.full((1, k), -np.inf, dtype=np.float32), np.full((1, k), -1, dtype=np.int64)
    for first, rows in vectors.blocks(4_096):
        ids = np.arange(first, first + len(rows))
        if allowed is not None:
            here = allowed[first : first + len(rows)]
            rows, ids = rows[here], ids[here]
        best = merged(best, (exact_scores(rows, query)[None], ids[None]))
    return [(int(id), float(score)) for score, id in zip(best[0][0], best[1][0], strict=True) if id >= 0]


@final
class RerankedSearch:
    """ANN with re-ranking: the ANN index proposes rows, the stored vectors rank them; newer rows are scanned.

    Queries for which the ANN index finds fewer than k rows are answered by ``exact``.
    """

    batch = ANN_BATCH

    def __init__(self, vectors: StoredVectors, ann: Candidates, *, exact: ExactSearch) -> None:
        self._vectors, self._ann, self._exact = vectors, ann, exact
        self._tail = ExactScan(vectors, first=ann.rows) if ann.rows < len(vectors) else None

    def search(
        self, queries: NDArray[np.float32], *, k: int, allowed: Allowed = None, total: int
    ) -> list[Ranked]:
        """Probably the best ``k`` of the ``total`` rows, all of them allowed; k <= total."""
        ann = self._ann
        _, ids = ann.candidates(queries, count=min(ann.depth(k), ann.rows), allowed=allowed)
        return self.ranked(queries, ids, k=k, wanted=min(k, ann.rows), allowed=allowed, total=total)

    def ranked(
        self,
        queries: NDArray[np.float32],
        ids: NDArray[np.int64],
        *,
        k: int,
        wanted: int,
        allowed: Allowed,
        total: int,
    ) -> list[Ranked]:
        """The best ``k`` of what was proposed and of newer rows; exact where fewer than ``wanted`` were proposed.

        Shapes: queries (n, dim), float32; ids (n, m), int64, -1: none.
        """
        short = np.flatnonzero((ids >= 0).sum(axis=1) < wanted)
        if self._tail is not None:
            _, newer = self._tail.candidates(queries, count=k + _MARGIN, allowed=allowed)
            ids = np.concatenate([ids, newer], axis=1)
        answers = rerank(self._vectors, queries, ids, k=k)
        if len(short):  # too few allowed rows near the query
            exact = self._exact.search(queries[short], k=k, allowed=allowed, total=total)
            for number, hits in zip(short, exact, strict=True):
                answers[number] = hits
        return answers


@final
class FilteredSearch:
    """ANN under a filter that allows many rows: more candidates are proposed, and those not allowed are dropped."""

    batch = ANN_BATCH

    def __init__(self, ann: Candidates, *, reranked: RerankedSearch, exact: ExactSearch) -> None:
        self._ann, self._reranked, self._exact = ann, reranked, exact

    def search(self, queries: NDArray[np.float32], *, k: int, allowed: Allowed, total: int) -> list[Ranked]:
        """Probably the best ``k`` of the ``total`` allowed rows; k <= total."""
        ann = self._ann
        covered = None if allowed is None else allowed[: ann.rows]
        count = ann.rows if covered is None else int(np.count_nonzero(covered))
        depth = min(ann.depth(k), ann.rows)
        needed = OVERFETCH * depth * ann.rows / max(1, count)
        if needed > MAX_FILTERED:
            return self._exact.search(queries, k=k, allowed=allowed, total=total)
        found: list[Ranked] = []
        step = max(1, round(_FILTERED_BATCH / needed))
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            _, ids = ann.candidates(part, count=depth, allowed=covered)
            found += self._reranked.ranked(
                part, ids, k=k, wanted=min(depth, count), allowed=allowed, total=total
            )
        return found


@final
class KnnSearcher:
    """Finds the rows with the largest inner products. Safe to use from several threads.

    ``candidates`` is an ANN index over the first rows, or a scan on a GPU; None: an exact scan on the CPU.
    """

    def __init__(self, vectors: StoredVectors, *, candidates: Candidates | None = None) -> None:
        self._vectors, self._candidates = vectors, candidates
        self._exact = ExactSearch(vectors, ExactScan(vectors))
        self._unfiltered: ExactSearch | RerankedSearch = self._exact
        self._filtered: ExactSearch | FilteredSearch = self._exact
        if candidates is not None and candidates.exact:
            self._unfiltered = self._filtered = ExactSearch(
                vectors, candidates, fallback=self._exact, most=_MOST_GPU_CANDIDATES
            )
        elif candidates is not None:
            reranked = self._unfiltered = RerankedSearch(vectors, candidates, exact=self._exact)
            self._filtered = FilteredSearch(candidates, reranked=reranked, exact=self._exact)

    def search(self, queries: NDArray[np.float32], *, k: int, allowed: Allowed = None) -> list[Ranked]:
        """The best ``k`` allowed rows of each query; fewer where there are fewer.

        Shapes: queries (n, dim), float32; allowed (rows,), bool.
        """
        rows = len(self._vectors)
        total = rows if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, total)
        if k == 0 or not len(queries):
            return [[] for _ in queries]
        if total == rows:
            allowed = None
        search = self._chosen(allowed, total)
        found: list[Ranked] = []
        for start in range(0, len(queries), search.batch):
            part = queries[start : start + search.batch]
            found += search.search(part, k=k, allowed=allowed, total=total)
        return found

    def _chosen(self, allowed: Allowed, total: int) -> ExactSearch | RerankedSearch | FilteredSearch:
        """The selectivity rule: exact scan, ANN with re-ranking, or ANN under a filter."""
        if allowed is None:
            return self._unfiltered
        return self._exact if self._scanned(allowed, total) else self._filtered

    def _scanned(self, allowed: Allowed, total: int) -> bool:
        if allowed is None or self._candidates is None:
            return False
        covered = self._candidates.rows
        return is_scanned(
            total if covered == len(allowed) else int(np.count_nonzero(allowed[:covered])), covered
        )

    def explain(self, *, allowed: Allowed = None) -> list[str]:
        """How a query is answered and why, a line per fact."""
        ann, rows = self._candidates, len(self._vectors)
        total = rows if allowed is None else int(np.count_nonzero(allowed))
        found = [] if total == rows else [f"{total:,} of {rows:,} rows are allowed (filter, tombstones)"]
        if ann is None:
            return [
                *found,
                f"exact search (no ANN index): all {rows:,} rows of stored float16 vectors are scanned",
            ]
        if total < rows and self._scanned(allowed, total):
            why = f"at most {SCAN_ROWS:,} rows or {SCAN_SHARE:.0%} of the ANN index are allowed"
            return [*found, f"exact scan of the {total:,} allowed rows: {why}"]
        name = "an exact scan" if ann.exact else "the ANN index"
        found.append(
            f"{name} proposes {min(ann.depth(10), ann.rows):,} of its {ann.rows:,} rows for 10 hits; the stored "
            "float16 vectors re-rank them"
        )
        if total < rows and not ann.exact:
            found.append(
                f"the filter multiplies candidates by {OVERFETCH * rows / total:,.1f} and nprobe or ef_search by "
                f"{rows / total:,.1f}; a query far from what it allows is answered by an exact scan"
            )
        if ann.rows < rows:
            found.append(f"exact scan of the {rows - ann.rows:,} rows added since the ANN index was built")
        return found
