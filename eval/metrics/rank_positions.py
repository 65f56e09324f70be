"""Where every right answer stands in the gallery: the one pass over the scores behind every metric.

Scores come as a matrix, or as two sets of vectors multiplied a block at a time so that none is held. Both directions
are counted from the same block. Ties are kept apart from wins, so that one pass serves every tie rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import Block, Embeddings, Indices, Scores, Source, checked_shape
from llm2clip.eval.metrics.positives import Positives, PositivesLike
from llm2clip.eval.metrics.score_source import source_of

_CHUNK_CELLS = 1 << 22
_LISTED_SHARE = 256
"""Up to one score in so many is computed again on its own; beyond, the whole block in double precision is cheaper."""


@dataclass(frozen=True, kw_only=True)
class RankPositions:
    """One row for each right pair, ordered by query and, within a query, best score first."""

    query: Indices
    """Shape: (pairs,): query of each pair, ascending."""
    answer: Indices
    """Shape: (pairs,): the right answer."""
    score: Scores
    """Shape: (pairs,): its score, descending within a query."""
    above: Indices
    """Shape: (pairs,): answers of the gallery, right or wrong, with a higher score."""
    equal: Indices
    """Shape: (pairs,): answers of the gallery with exactly this score, this one included."""
    queries: int
    """Queries, those without a right answer included."""
    gallery: int
    """Answers to choose from."""

    def first(self) -> Indices:
        """Row at which each query's pairs begin. Shape: (queries + 1,)."""
        return np.searchsorted(self.query, np.arange(self.queries + 1)).astype(np.int64)

    def slot(self) -> Indices:
        """Number of each pair within its query, 0 for the best. Shape: (pairs,)."""
        return np.arange(len(self.query), dtype=np.int64) - self.first()[self.query]

    def tie_groups(self) -> tuple[Indices, Indices]:
        """(number of each pair's tie group, right answers in that group): pairs of one query and one score."""
        new = np.ones(len(self.query), dtype=np.bool_)
        new[1:] = (self.query[1:] != self.query[:-1]) | (self.score[1:] != self.score[:-1])
        group = np.cumsum(new) - 1
        return group, np.bincount(group)[group]


def rank_positions(
    scores: Scores | Embeddings,
    *,
    positives: PositivesLike,
    best_only: bool = False,
    both: bool = True,
    chunk: int | None = None,
) -> tuple[RankPositions, RankPositions | None]:
    """Find where right answers stand, for rows as queries and for columns as queries.

    Args:
        scores: Shape: (queries, gallery), or :class:`Embeddings` whose ``texts`` are the queries.
        positives: As in :func:`llm2clip.eval.retrieval_metrics`; rows are queries.
        best_only: Count for each query's best right answer only; ``above`` and ``equal`` of others stay 0.
        both: Also take the columns as queries; otherwise the second result is ``None``.
        chunk: Rows scored at a time; by default as many as make about four million scores.

    Raises:
        ValueError: As :func:`llm2clip.eval.retrieval_metrics`.
    """
    pairs = Positives.of(positives, shape=checked_shape(scores))
    if chunk is not None and chunk < 1:
        raise ValueError(f"got chunk {chunk}, expected at least 1 query at a time")
    source = source_of(scores)
    step = min(chunk or max(1, _CHUNK_CELLS // source.shape[1]), source.shape[0])
    score = source.pairs(pairs.row, pairs.column)
    tallies = [_Tally(source, pairs, score, axis=axis, best_only=best_only) for axis in (1, 0)[: 1 + both]]
    for start in range(0, source.shape[0], step):
        block = source.block(start, min(start + step, source.shape[0]))
        for tally in tallies:
            tally.add(block, start, min(start + step, source.shape[0]))
    return tallies[0].rank_positions(), tallies[1].rank_positions() if both else None


class _Tally:
    """Counts of one direction: axis 1 where rows are queries, 0 where columns are."""

    def __init__(
        self, source: Source, positives: Positives, score: Scores, *, axis: int, best_only: bool
    ) -> None:
        self._source, self._axis = source, axis
        query, answer = (positives.row, positives.column) if axis else (positives.column, positives.row)
        order = np.lexsort((answer, -score, query))
        self._query, self._answer, self._score = query[order], answer[order], score[order]
        self._above, self._equal = (np.zeros(len(order), dtype=np.int64) for _ in range(2))
        slot = np.arange(len(order)) - np.searchsorted(self._query, self._query)
        depth = 1 if best_only else int(slot.max(initial=0)) + 1
        self._slots = [np.flatnonzero(slot == number) for number in range(depth)]
        margin = source.margin(self._query, axis=axis)
        self._low, self._high = _limits(self._score, margin)

    def add(self, block: Block, start: int, stop: int) -> None:
        """Count the scores of the rows ``start`` to ``stop - 1``."""
        for pairs, lines in self._in_block(start, stop):
            listed = 0 if self._source.final else lines.size * self._across(start, stop) // _LISTED_SHARE + 64
            weighed = block.weigh(
                lines, low=self._low[pairs], high=self._high[pairs], axis=self._axis, list_up_to=listed
            )
            if not self._source.final and weighed.doubtful is None:
                score = self._score[pairs]
                weighed = block.settled().weigh(lines, low=score, high=score, axis=self._axis, list_up_to=-1)
            self._above[pairs] += weighed.above
            if weighed.doubtful is None or self._source.final:
                self._equal[pairs] += weighed.reached - weighed.above
            elif len(weighed.doubtful[0]):
                self._settle(pairs, *weighed.doubtful, start=start)

    def rank_positions(self) -> RankPositions:
        """What was counted."""
        queries, gallery = self._source.shape if self._axis else self._source.shape[::-1]
        return RankPositions(
            query=self._query,
            answer=self._answer,
            score=self._score,
            above=self._above,
            equal=self._equal,
            queries=queries,
            gallery=gallery,
        )

    def _across(self, start: int, stop: int) -> int:
        return self._source.shape[1] if self._axis else stop - start

    def _in_block(self, start: int, stop: int) -> Iterator[tuple[Indices, Indices]]:
        """For each number of right answer: the pairs that this block bears on, and their lines in it."""
        for pairs in self._slots:
            if not self._axis:
                yield pairs, self._query[pairs]
                continue
            first, last = np.searchsorted(self._query[pairs], (start, stop))
            if first < last:
                yield pairs[first:last], self._query[pairs[first:last]] - start

    def _settle(self, pairs: Indices, line: Indices, other: Indices, *, start: int) -> None:
        """Compare the doubtful scores again, in their final form."""
        query = self._query[pairs][line]
        other = other if self._axis else other + start
        rows, columns = (query, other) if self._axis else (other, query)
        values, limit = self._source.pairs(rows, columns), self._score[pairs][line]
        self._above[pairs] += np.bincount(line[values > limit], minlength=len(pairs))
        self._equal[pairs] += np.bincount(line[values == limit], minlength=len(pairs))


def _limits(score: Scores, margin: NDArray[np.float64]) -> tuple[Scores, Scores]:
    """Scores below which a block's score is certainly lower, and above which it is certainly higher."""
    if not margin.any():
        return score, score
    wide = score.astype(np.float64)
    low, high = (wide - margin).astype(score.dtype), (wide + margin).astype(score.dtype)
    return np.nextafter(low, score.dtype.type(-np.inf)), np.nextafter(high, score.dtype.type(np.inf))
