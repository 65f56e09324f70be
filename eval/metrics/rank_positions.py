"""The rank positions of all right answers: the one pass over the scores that every metric and tie rule starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import (
    Block,
    Embeddings,
    Indices,
    MatrixSource,
    ProductSource,
    Scores,
    ScoreSource,
    checked_shape,
)

PositivesLike: TypeAlias = Union[
    "NDArray[np.bool_]",
    "NDArray[np.integer[Any]]",
    Mapping[int, int | Iterable[int]],
    Sequence[int | Iterable[int]],
    "Positives",
]


@dataclass(frozen=True, kw_only=True)
class Positives:
    """Right (query, answer) pairs, each once, ordered by query."""

    row: NDArray[np.int64]
    """Shape: (pairs,): query of each pair, ascending."""
    column: NDArray[np.int64]
    """Shape: (pairs,): answer of each pair."""
    rows: int
    columns: int
    """Answers in the gallery."""

    @classmethod
    def of(cls, positives: PositivesLike, *, shape: tuple[int, int]) -> Positives:
        """Read any of the accepted forms.

        ``positives``: boolean matrix of ``shape``; integer vector with one answer per query; or a mapping or
        sequence that gives a query's answer or answers. A query absent from a mapping has none.
        """
        if isinstance(positives, Positives):
            if (positives.rows, positives.columns) != shape:
                got = (positives.rows, positives.columns)
                raise ValueError(f"got positives for {got} queries and answers, expected {shape}")
            return positives
        row, column = _pairs(positives, shape)
        for name, index, size in (("query", row, shape[0]), ("answer", column, shape[1])):
            if len(index) and (index.min() < 0 or index.max() >= size):
                bad = index[(index < 0) | (index >= size)][0]
                raise ValueError(f"got {name} {bad} in the positives, expected 0 to {size - 1}")
        if not len(row):
            raise ValueError("got positives without a single right pair, expected at least one")
        unique = np.unique(row * np.int64(shape[1]) + column)
        return cls(row=unique // shape[1], column=unique % shape[1], rows=shape[0], columns=shape[1])

    def transposed(self) -> Positives:
        """The same pairs with queries and answers exchanged."""
        order = np.lexsort((self.row, self.column))
        return Positives(row=self.column[order], column=self.row[order], rows=self.columns, columns=self.rows)


def _pairs(positives: PositivesLike, shape: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if isinstance(positives, np.ndarray):
        return _array_pairs(positives, shape)
    assert not isinstance(positives, Positives)
    if isinstance(positives, Mapping):
        entries = list(positives.items())
    elif len(positives) == shape[0]:
        entries = list(enumerate(positives))
    else:
        raise ValueError(f"got positives for {len(positives)} queries, expected {shape[0]}")
    row: list[int] = []
    column: list[int] = []
    for query, answers in entries:
        listed = (
            [int(answers)] if isinstance(answers, int | np.integer) else [int(answer) for answer in answers]
        )
        row += [int(query)] * len(listed)
        column += listed
    return np.asarray(row, dtype=np.int64), np.asarray(column, dtype=np.int64)


def _array_pairs(
    positives: NDArray[Any], shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if positives.dtype == np.bool_ and positives.shape == shape:
        row, column = np.nonzero(positives)
        return row.astype(np.int64), column.astype(np.int64)
    if np.issubdtype(positives.dtype, np.integer) and positives.shape == shape[:1]:
        return np.arange(shape[0], dtype=np.int64), positives.astype(np.int64)
    raise ValueError(
        f"got positives of shape {positives.shape} and dtype {positives.dtype}, expected bool {shape} "
        f"or integers ({shape[0]},)"
    )


@dataclass(frozen=True, kw_only=True)
class RankPositions:
    """One row for each right pair, ordered by query and, within a query, best score first."""

    query: Indices
    """Shape: (pairs,): query of each pair, ascending."""
    answer: Indices
    score: Scores
    """Shape: (pairs,): its score, descending within a query."""
    above: Indices
    """Shape: (pairs,): answers of the gallery, right or wrong, with a higher score."""
    equal: Indices
    """Shape: (pairs,): answers of the gallery with exactly this score, this one included."""
    queries: int
    """Queries, those without a right answer included."""
    gallery: int

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


def score_source(scores: Scores | Embeddings) -> ScoreSource:
    """The source of a matrix of scores, or of embeddings on their device."""
    if not isinstance(scores, Embeddings):
        return MatrixSource(scores)
    if scores.device is None:
        return ProductSource(scores)
    from llm2clip.eval.metrics.blockwise_scores_torch import TorchSource

    return TorchSource(scores)


def rank_positions(
    scores: Scores | Embeddings,
    *,
    positives: PositivesLike,
    best_only: bool = False,
    both: bool = True,
    chunk: int | None = None,
) -> tuple[RankPositions, RankPositions | None]:
    """Count the answers above and beside every right answer, for rows and for columns as queries."""
    pairs = Positives.of(positives, shape=checked_shape(scores))
    if chunk is not None and chunk < 1:
        raise ValueError(f"got chunk {chunk}, expected at least 1 query at a time")
    source = score_source(scores)
    score = source.pairs(pairs.row, pairs.column)
    forward = _Counter(pairs, score, axis=1, best_only=best_only)
    backward = _Counter(pairs, score, axis=0, best_only=best_only) if both else None
    for start, stop, block in source.blocks(chunk):
        if isinstance(scores, Embeddings):
            # A block may differ from the same product elsewhere in the last bit: right pairs must equal their limits.
            inside = slice(*np.searchsorted(pairs.row, (start, stop)))
            block.put(pairs.row[inside] - start, pairs.column[inside], score[inside])
        for counter in filter(None, (forward, backward)):
            counter.add(block, start, stop)
    return forward.found(), backward.found() if backward else None


class _Counter:
    """Counts of one direction: axis 1 where rows of the blocks are the queries, 0 where columns are."""

    def __init__(self, pairs: Positives, score: Scores, *, axis: int, best_only: bool) -> None:
        self._axis = axis
        self._shape = (pairs.rows, pairs.columns) if axis else (pairs.columns, pairs.rows)
        query, answer = (pairs.row, pairs.column) if axis else (pairs.column, pairs.row)
        order = np.lexsort((answer, -score, query))
        self._query, self._answer, self._score = query[order], answer[order], score[order]
        self._above, self._equal = (np.zeros(len(order), dtype=np.int64) for _ in range(2))
        slot = np.arange(len(order)) - np.searchsorted(self._query, self._query)
        depth = 1 if best_only else int(slot.max(initial=0)) + 1
        self._slots = [np.flatnonzero(slot == number) for number in range(depth)]

    def add(self, block: Block, start: int, stop: int) -> None:
        """Count the scores of the rows ``start`` to ``stop - 1``, one right answer of every query at a time."""
        for pairs in self._slots:
            lines = self._query[pairs]
            if self._axis:
                first, last = np.searchsorted(lines, (start, stop))
                pairs, lines = pairs[first:last], lines[first:last] - start
            if len(pairs):
                above, equal = block.count(lines, self._score[pairs], axis=self._axis)
                self._above[pairs] += above
                self._equal[pairs] += equal

    def found(self) -> RankPositions:
        """What was counted."""
        return RankPositions(
            query=self._query,
            answer=self._answer,
            score=self._score,
            above=self._above,
            equal=self._equal,
            queries=self._shape[0],
            gallery=self._shape[1],
        )
