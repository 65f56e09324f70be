"""Where a query's right answers stand among the wrong ones: the pass over the scores behind every metric.

Scores come as a matrix, or as two sets of vectors multiplied a block at a time so that none is held.
Ties are kept apart from wins, so that one pass serves every tie rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.positives import Positives, PositivesLike

Scores: TypeAlias = "NDArray[np.floating[Any]]"
_CHUNK_CELLS = 1 << 24


class Ties(Enum):
    """Who wins when a right and a wrong answer have the same score."""

    PESSIMISTIC = "pessimistic"
    """Wrong answers come first: what we report."""
    EXPECTED = "expected"
    """The mean over all orders of the tied answers."""
    OPTIMISTIC = "optimistic"
    """Right answers come first."""


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Unit rows of both sides, for callers who do not want the whole score matrix in memory."""

    texts: Scores
    """Shape: (texts, dim), unit rows."""
    images: Scores
    """Shape: (images, dim), unit rows."""

    def __post_init__(self) -> None:
        if self.texts.ndim != 2 or self.images.ndim != 2 or self.texts.shape[1] != self.images.shape[1]:
            raise ValueError(
                f"got text embeddings of shape {self.texts.shape} and image embeddings of shape "
                f"{self.images.shape}, expected (texts, dim) and (images, dim). Encode both with one encoder."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(texts, images)."""
        return len(self.texts), len(self.images)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where each query's best right answer stands among the wrong ones.

    All arrays have shape (queries,) and dtype int64; a query without a right answer has 0 in ``right``.
    """

    above: NDArray[np.int64]
    """Wrong answers that score strictly higher than the best right one."""
    tied: NDArray[np.int64]
    """Wrong answers with exactly the score of the best right one."""
    tied_right: NDArray[np.int64]
    """Right answers with that score, the best one included."""
    right: NDArray[np.int64]
    """Right answers in the gallery."""
    gallery: int
    """Answers to choose from."""

    def hits(self, k: int, *, ties: Ties = Ties.PESSIMISTIC) -> NDArray[np.float64]:
        """Tell for each query whether any right answer is among the first ``k``.

        Args:
            k: Length of the list of answers, at least 1.
            ties: Order of equal scores; only ``EXPECTED`` gives values other than 0 and 1.

        Returns:
            Shape: (queries,), float64 in [0, 1]; 0 for a query without a right answer.
        """
        matched = self.right > 0
        if ties is Ties.PESSIMISTIC:
            return (matched & (self.above + self.tied < k)).astype(np.float64)
        if ties is Ties.OPTIMISTIC:
            return (matched & (self.above < k)).astype(np.float64)
        free = np.clip(k - self.above, 0, self.tied + self.tied_right)
        return np.where(matched, 1.0 - _all_wrong(self.tied, self.tied_right, free), 0.0)

    def ranks(self, *, ties: Ties = Ties.PESSIMISTIC) -> NDArray[np.float64]:
        """Rank of the best right answer, 1-based.

        Returns:
            Shape: (queries,), float64; infinity for a query without a right answer.
        """
        if ties is Ties.PESSIMISTIC:
            waiting = self.tied.astype(np.float64)
        elif ties is Ties.OPTIMISTIC:
            waiting = np.zeros(len(self.tied))
        else:  # of w wrong answers shuffled with r right ones, w / (r + 1) stand before the first right one
            waiting = self.tied / (self.tied_right + 1)
        return np.where(self.right > 0, self.above + waiting + 1.0, np.inf)


def _all_wrong(
    wrong: NDArray[np.int64], right: NDArray[np.int64], drawn: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Chance that ``drawn`` of all tied answers are wrong: C(wrong, drawn) / C(wrong + right, drawn)."""
    chance = np.ones(len(wrong))
    # The same as the chance that no right answer falls on a drawn place, which is a product over the right
    # answers: few factors, where the draws may be many.
    for number in range(int(right.max(initial=0))):
        places = np.maximum(wrong + right - number, 1)
        factor = np.clip((places - drawn) / places, 0.0, 1.0)
        chance = np.where(number < right, chance * factor, chance)
    return chance


def standing(scores: Scores | Embeddings, *, positives: PositivesLike, chunk: int | None = None) -> Standing:
    """Find where each row's best right answer stands; rows are queries, columns the gallery.

    Args:
        scores: Shape: (queries, gallery), or :class:`Embeddings` whose ``texts`` are the queries.
        positives: As in :func:`retrieval_metrics`, rows are queries.
        chunk: Rows looked at together.

    Raises:
        ValueError: As :func:`retrieval_metrics`.
    """
    pairs = Positives.of(positives, shape=checked_shape(scores))
    above, tied, tied_right = (np.zeros(pairs.rows, dtype=np.int64) for _ in range(3))
    for start, block in _blocks(scores, chunk):
        stop = start + len(block)
        row, column = pairs.between(start, stop)
        values = block[row, column]
        best = np.full(
            len(block), np.inf, dtype=block.dtype
        )  # nothing stands above a query without an answer
        best[row] = -np.inf
        np.maximum.at(best, row, values)
        tied_right[start:stop] = np.bincount(row[values == best[row]], minlength=len(block))
        above[start:stop] = np.count_nonzero(block > best[:, None], axis=1)
        tied[start:stop] = np.count_nonzero(block == best[:, None], axis=1) - tied_right[start:stop]
    return Standing(
        above=above, tied=tied, tied_right=tied_right, right=pairs.per_row(), gallery=pairs.columns
    )


def found_share(
    scores: Scores | Embeddings, *, positives: PositivesLike, k: int, chunk: int | None = None
) -> NDArray[np.float64]:
    """Share of a query's right answers found among the first ``k``, ties against us: recall in text search.

    With five captions to a picture this is at most 1/5 at k = 1 where :func:`retrieval_metrics` says 1: the
    two must not be compared. Golden case i calls it ``true_recall``.

    Returns:
        Shape: (queries,), float64 in [0, 1]; 0 for a query without a right answer.
    """
    pairs = Positives.of(positives, shape=checked_shape(scores))
    found = np.zeros(pairs.rows, dtype=np.int64)
    for start, block in _blocks(scores, chunk):
        row, column = pairs.between(start, start + len(block))
        order = np.lexsort((-block[row, column], row))
        row, column = row[order], column[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        wrong = np.ones(block.shape, dtype=np.bool_)
        wrong[row, column] = False
        for number in range(min(k, int(place.max(initial=-1)) + 1)):
            asked = row[place == number]
            value = block[asked, column[place == number], None]
            before = np.count_nonzero(wrong[asked] & (block[asked] >= value), axis=1) + number
            found[start + asked] += before < k
    return found / np.maximum(pairs.per_row(), 1)


def checked_shape(scores: Scores | Embeddings) -> tuple[int, int]:
    """(queries, gallery), both at least 1; anything else is a ``ValueError``."""
    shape = scores.shape
    if len(shape) != 2 or not all(shape):
        raise ValueError(
            f"got scores of shape {shape}, expected (queries, gallery) with at least one of each"
        )
    return int(shape[0]), int(shape[1])


def _blocks(scores: Scores | Embeddings, chunk: int | None) -> Iterator[tuple[int, Scores]]:
    """Yield (first row, scores of some rows), refusing scores that cannot be ordered."""
    rows, columns = checked_shape(scores)
    if chunk is not None and chunk < 1:
        raise ValueError(f"got chunk {chunk}, expected at least 1 query at a time")
    step = chunk or max(1, _CHUNK_CELLS // columns)
    gallery = scores.images.astype(np.float64).T if isinstance(scores, Embeddings) else None
    for start in range(0, rows, step):
        if isinstance(scores, Embeddings):
            assert gallery is not None
            # Summed in double precision and rounded once, equal vectors get equal scores whatever block they
            # fall in; single-precision products differ in the last bit and hide ties.
            with np.errstate(invalid="ignore", over="ignore"):
                block = (scores.texts[start : start + step].astype(np.float64) @ gallery).astype(np.float32)
        else:
            block = scores[start : start + step]
        if not np.isfinite(block).all():
            row, column = np.argwhere(~np.isfinite(block))[0]
            raise ValueError(
                f"got the score {block[row, column]} for query {start + row} and answer {column}, expected "
                "finite numbers. A model that returns NaN has no recall: look for overflow in half precision."
            )
        yield start, block
