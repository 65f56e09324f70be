"""The rank of a query's right answers under each rule for ties: best rank, share found, mAP@R.

Expected values under ties are means over all orders of the tied answers, in closed form (McSherry & Najork, ECIR 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import Embeddings, Indices, Scores
from llm2clip.eval.metrics.rank_positions import PositivesLike, RankPositions, rank_positions


class Ties(Enum):
    """Who wins when a right and a wrong answer have the same score."""

    PESSIMISTIC = "pessimistic"
    """Wrong answers come first: what we report."""
    EXPECTED = "expected"
    """The mean over all orders of the tied answers."""
    OPTIMISTIC = "optimistic"
    """Right answers come first."""


@dataclass(frozen=True, kw_only=True)
class TieBounds:
    """One metric, by who wins a tie; for shares in [0, 1]."""

    pessimistic: float
    """Ties counted against us: the value to report."""
    expected: float
    """Mean over all orders of tied answers."""
    optimistic: float
    """Ties counted for us. A gap to ``pessimistic`` means coarse scores or collapsed vectors."""


@dataclass(frozen=True, kw_only=True)
class BestRank:
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

    @classmethod
    def of(cls, where: RankPositions) -> BestRank:
        """Take the best right answer of each query."""
        first = where.first()
        right = np.diff(first)
        above, tied, tied_right = (np.zeros(where.queries, dtype=np.int64) for _ in range(3))
        asked = right > 0
        best = first[:-1][asked]
        above[asked] = where.above[best]
        tied_right[asked] = where.tie_groups()[1][best]
        tied[asked] = where.equal[best] - tied_right[asked]
        return cls(above=above, tied=tied, tied_right=tied_right, right=right, gallery=where.gallery)

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
        spots = np.maximum(wrong + right - number, 1)
        factor = np.clip((spots - drawn) / spots, 0.0, 1.0)
        chance = np.where(number < right, chance * factor, chance)
    return chance


def best_rank(scores: Scores | Embeddings, *, positives: PositivesLike, chunk: int | None = None) -> BestRank:
    """Find where each row's best right answer stands; rows are queries, columns the gallery.

    Args:
        scores: Shape: (queries, gallery), or :class:`Embeddings` whose ``texts`` are the queries.
        positives: As in :func:`retrieval_metrics`, rows are queries.
        chunk: Rows looked at together.

    Raises:
        ValueError: As :func:`retrieval_metrics`.
    """
    return BestRank.of(
        rank_positions(scores, positives=positives, best_only=True, both=False, chunk=chunk)[0]
    )


def found_share(
    scores: Scores | Embeddings, *, positives: PositivesLike, k: int, chunk: int | None = None
) -> NDArray[np.float64]:
    """Share of a query's right answers found among the first ``k``, ties against us: recall in text search.

    With five captions to an image this is at most 1/5 at k = 1 where :func:`retrieval_metrics` says 1: the
    two must not be compared. Golden case i calls it ``true_recall``.

    Returns:
        Shape: (queries,), float64 in [0, 1]; 0 for a query without a right answer.
    """
    where = rank_positions(scores, positives=positives, both=False, chunk=chunk)[0]
    # Right answers above stand before, and so do all wrong ones of the same score: of right ones of the same score,
    # those counted before this one.
    group, right = where.tie_groups()
    inside = np.arange(len(group)) - np.searchsorted(group, group)
    before = where.above + (where.equal - right) + inside
    found = np.bincount(where.query, weights=before < k, minlength=where.queries)
    return found / np.maximum(np.diff(where.first()), 1)


def average_precision_at_r(where: RankPositions, *, ties: Ties = Ties.PESSIMISTIC) -> NDArray[np.float64]:
    """Average precision over the first R answers, R being the query's own number of right ones.

    The sum of the precisions at each right answer among the first R, divided by R (Musgrave, Belongie & Lim, ECCV
    2020; the main number of ECCV Caption). With one right answer it equals recall@1. It is not the average precision
    of text search, which reads on to the end of the list or to a fixed k.

    Returns:
        Shape: (queries,), float64 in [0, 1]; 0 for a query without a right answer.
    """
    right = np.diff(where.first())
    limit = right[where.query]
    slot = where.slot()
    group, members = where.tie_groups()
    inside = np.arange(len(group)) - np.searchsorted(group, group)
    if ties is Ties.EXPECTED:
        heads = inside == 0
        share = _expected_precision(where, members, slot, limit)[heads]
        query = where.query[heads]
    else:
        waiting = where.equal - members if ties is Ties.PESSIMISTIC else 0
        rank = where.above + waiting + inside + 1
        share = np.where(rank <= limit, (slot + 1) / rank, 0.0)
        query = where.query
    return np.bincount(query, weights=share, minlength=where.queries) / np.maximum(right, 1)


def _expected_precision(
    where: RankPositions, members: Indices, slot: Indices, limit: Indices
) -> NDArray[np.float64]:
    """Expected sum of precisions over the ranks that a tie group fills; valid at the first pair of each group.

    At the t-th of the group's e ranks stands a right answer with chance p / e, and then 1 + (t - 1)(p - 1)/(e - 1)
    of the group's right answers are expected up to there, beside the ``slot`` ones above the group.
    """
    ranks = np.clip(limit - where.above, 0, where.equal)
    harmonic = np.concatenate(([0.0], np.cumsum(1.0 / np.arange(1, int(limit.max(initial=0)) + 1))))
    above = np.minimum(where.above, len(harmonic) - 1)
    inverse = np.where(
        ranks > 0, harmonic[np.minimum(above + ranks, len(harmonic) - 1)] - harmonic[above], 0.0
    )
    growth = (members - 1) / np.maximum(where.equal - 1, 1)
    summed = (slot + 1 - (where.above + 1) * growth) * inverse + growth * ranks
    return members / where.equal * np.where(ranks > 0, summed, 0.0)
