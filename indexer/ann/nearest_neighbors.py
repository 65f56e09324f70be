"""The search over all rows of an index: the structure over its first rows, a scan of those that came since.

Which way a query goes, and why, is ``explain``'s to say.
"""

from __future__ import annotations

from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.exact_scan import ExactScan, Found, merged
from llm2clip.indexer.ann.filtered_recall import MOSTLY, QUERIES, Trust
from llm2clip.indexer.ann.rerank import Ranked, exact_scores, rerank
from llm2clip.indexer.storage.vector_segments import Vectors

SCANNED_SHARE = 0.02
"""Where a filter lets through no larger share of the rows than this, those rows are scanned."""
SCANNED_ROWS = 20_000
"""Nor where it lets through no more rows than this."""
QUERIES_AT_ONCE = 1_024
"""What a structure is asked at once: in smaller parts FAISS's threads wait for one another more than they search."""
_SCANNED_AT_ONCE = 256
"""And a scan, which holds the scores of a block of rows with all of them."""
_WIDEN = 8
_AT_MOST = 8_192
_ELSEWHERE = 2_048
"""What a GPU is asked for at most."""

Allowed = NDArray[np.bool_] | None


class Candidates(Protocol):
    """Proposes rows that are near to a query; what is said about them is computed from the stored halves."""

    @property
    def rows(self) -> int:
        """How many rows it covers, from id 0."""

    @property
    def exact(self) -> bool:
        """Whether no row that it leaves out can be nearer than those it proposes, but for rounding."""

    def candidates(self, queries: NDArray[np.float32], *, count: int, allowed: Allowed) -> Found:
        """Scores (n, count) float32 and ids (n, count) int64 of near rows, nearest first; -1: no more."""

    @property
    def slack(self) -> float:
        """How far the scores it ranks by can be off."""

    def depth(self, k: int) -> int:
        """How many to propose for ``k`` hits."""


@final
class KnnSearcher:
    """Finds the rows with the largest inner products. Safe to use from several threads.

    Args:
        vectors: the stored rows.
        candidates: a structure over the first of them; None: all are scanned, which is exact.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
    """

    def __init__(self, vectors: Vectors, *, candidates: Candidates | None = None) -> None:
        self._vectors, self._candidates = vectors, candidates
        self._scan = ExactScan(vectors)
        self._trust = Trust()
        covered = candidates.rows if candidates is not None else 0
        self._tail = ExactScan(vectors, first=covered) if 0 < covered < len(vectors) else None

    def search(self, queries: NDArray[np.float32], *, k: int, allowed: Allowed = None) -> list[Ranked]:
        """The best ``k`` rows of each query among those that are allowed; fewer where there are fewer.

        Args:
            queries: Shape: (n, dim), float32.
            k: how many to find, at least 1.
            allowed: which ids may be found, all if None. Shape: (rows,), bool.
        """
        total = len(self._vectors) if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, total)
        if k == 0 or not len(queries):
            return [[] for _ in queries]
        if allowed is not None and total == len(allowed):
            allowed = None
        structure = self._candidates
        scanned = structure is None or structure.exact or self._scanned(total, allowed)
        at_once = _SCANNED_AT_ONCE if scanned else QUERIES_AT_ONCE
        found: list[Ranked] = []
        for start in range(0, len(queries), at_once):
            found += self._answered(queries[start : start + at_once], k=k, allowed=allowed, total=total)
        return found

    def _answered(
        self, queries: NDArray[np.float32], *, k: int, allowed: Allowed, total: int
    ) -> list[Ranked]:
        structure = self._candidates
        if structure is None or self._scanned(total, allowed):
            return self._exact(self._scan, queries, k=k, allowed=allowed, total=total)
        if structure.exact and self._tail is None:
            return self._exact(structure, queries, k=k, allowed=allowed, total=total)
        if structure.exact or allowed is None or total > MOSTLY * len(allowed):
            return self._proposed(structure, queries, k=k, allowed=allowed)
        return self._filtered(structure, queries, k=k, allowed=allowed, total=total)

    def explain(self, *, allowed: Allowed = None) -> list[str]:
        """How a query would be answered and why, a line per fact."""
        structure, rows = self._candidates, len(self._vectors)
        total = rows if allowed is None else int(np.count_nonzero(allowed))
        found = [] if total == rows else [f"{total:,} of {rows:,} rows may be found (filter, tombstones)"]
        if structure is None:
            return [*found, f"exact scan of the stored halves of {rows:,} rows: no structure was made"]
        if self._scanned(total, allowed):
            why = f"no more than {SCANNED_ROWS:,} rows or {SCANNED_SHARE:.0%} are left"
            return [*found, f"exact scan of the {total:,} rows that may be found: {why}"]
        name = "an exact structure" if structure.exact else "an approximate structure"
        found.append(
            f"{name} proposes {structure.depth(10):,} of its {structure.rows:,} rows for 10 hits, which are ranked "
            "by the stored halves"
        )
        if allowed is not None and not structure.exact and total <= MOSTLY * rows:
            found.append(
                f"the first {QUERIES} queries under this filter are also answered by a scan of what it lets through; "
                "so are all others if the structure misses too much of that"
            )
        if self._tail is not None:
            found.append(f"exact scan of the {rows - structure.rows:,} rows that came since it was made")
        return found

    def _scanned(self, total: int, allowed: Allowed) -> bool:
        return allowed is not None and total <= max(SCANNED_ROWS, SCANNED_SHARE * len(allowed))

    def _filtered(
        self,
        structure: Candidates,
        queries: NDArray[np.float32],
        *,
        k: int,
        allowed: NDArray[np.bool_],
        total: int,
    ) -> list[Ranked]:
        """By the structure if it is believed under this filter, else by a scan; the first queries by both."""
        evidence = self._trust.about(allowed)
        tried: list[Ranked] = []
        if due := evidence.due(len(queries)):
            some = queries[:due]
            tried = self._exact(self._scan, some, k=k, allowed=allowed, total=total)
            evidence.add(tried, self._proposed(structure, some, k=k, allowed=allowed))
        rest = queries[len(tried) :]
        if not len(rest):
            return tried
        if evidence.believed:
            return tried + self._proposed(structure, rest, k=k, allowed=allowed)
        return tried + self._exact(self._scan, rest, k=k, allowed=allowed, total=total)

    def _proposed(
        self, structure: Candidates, queries: NDArray[np.float32], *, k: int, allowed: Allowed
    ) -> list[Ranked]:
        below = None if allowed is None else allowed[: structure.rows]
        count = structure.depth(k)
        _, ids = structure.candidates(queries, count=min(count, structure.rows), allowed=below)
        if self._tail is not None:
            _, others = self._tail.candidates(queries, count=k + 8, allowed=allowed)
            ids = np.concatenate([ids, others], axis=1)
        answers = rerank(self._vectors, queries, ids, k=k)
        short = [number for number, hits in enumerate(answers) if len(hits) < k]
        if short:  # lists that were not looked into hold what is missing: rare, and answered exactly
            total = len(self._vectors) if allowed is None else int(np.count_nonzero(allowed))
            exact = self._exact(self._scan, queries[short], k=k, allowed=allowed, total=total)
            for number, hits in zip(short, exact, strict=True):
                answers[number] = hits
        return answers

    def _exact(
        self,
        structure: Candidates | ExactScan,
        queries: NDArray[np.float32],
        *,
        k: int,
        allowed: Allowed,
        total: int,
    ) -> list[Ranked]:
        """By brute force: float32 sums propose, a few more than asked for, and doubtful cases are asked again."""
        count = min(total, k + 8)
        scores, ids = structure.candidates(queries, count=count, allowed=allowed)
        answers = rerank(self._vectors, queries, ids, k=k)
        while count < total:
            doubtful = [n for n, hits in enumerate(answers) if scores[n, -1] + structure.slack >= hits[-1][1]]
            if not doubtful:
                break
            count = min(total, count * _WIDEN)
            if count > _AT_MOST or (structure is not self._scan and count > _ELSEWHERE):
                for number in doubtful:
                    answers[number] = self._in_doubt(structure, queries[number : number + 1], k, allowed)
                break
            again, ids = structure.candidates(queries[doubtful], count=count, allowed=allowed)
            for number, hits in zip(
                doubtful, rerank(self._vectors, queries[doubtful], ids, k=k), strict=True
            ):
                answers[number] = hits
            scores = np.full(len(queries), -np.inf, dtype=np.float32)[:, None]
            scores[doubtful, 0] = again[:, -1]
        return answers

    def _in_doubt(
        self, structure: Candidates | ExactScan, query: NDArray[np.float32], k: int, allowed: Allowed
    ) -> Ranked:
        """By the next more faithful way: float32 sums of the halves, then every row's exact score."""
        if structure is self._scan:
            return self._ties(query, k=k, allowed=allowed)
        total = len(self._vectors) if allowed is None else int(np.count_nonzero(allowed))
        return self._exact(self._scan, query, k=k, allowed=allowed, total=total)[0]

    def _ties(self, query: NDArray[np.float32], *, k: int, allowed: Allowed) -> Ranked:
        """Every row's exact score: where more rows are equally near than can be proposed."""
        best: Found | None = None
        for first, rows in self._vectors.blocks(4_096):
            ids = np.arange(first, first + len(rows))
            if allowed is not None:
                here = allowed[first : first + len(rows)]
                rows, ids = rows[here], ids[here]
            exact = exact_scores(rows, query[0])
            both = (exact[None], ids[None])
            best = merged(best, both) if best is not None else _padded(both, k)
        assert best is not None
        return [(int(id), float(score)) for score, id in zip(best[0][0], best[1][0], strict=True) if id >= 0]


def _padded(found: Found, k: int) -> Found:
    none = (np.full((1, k), -np.inf, dtype=np.float32), np.full((1, k), -1, dtype=np.int64))
    return merged(none, found)
