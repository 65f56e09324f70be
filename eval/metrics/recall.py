"""Recall@k, ranks and mAP@R from the rank positions of right answers, under each rule for ties.

What is counted, and the tie rule, follow golden case i; expected values under ties are means over all orders of the
tied answers, in closed form (McSherry & Najork, ECIR 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import Embeddings, Indices, Scores
from llm2clip.eval.metrics.rank_positions import PositivesLike, RankPositions, rank_positions


class Ties(Enum):
    """Which of a right and a wrong answer with the same score comes first."""

    PESSIMISTIC = "pessimistic"
    """The wrong one: what we report."""
    EXPECTED = "expected"
    OPTIMISTIC = "optimistic"
    """The right one."""


@dataclass(frozen=True, kw_only=True)
class TieBounds:
    """One metric under each rule for ties; for shares in [0, 1]."""

    pessimistic: float
    """Ties counted against the encoder: the value to report."""
    expected: float
    """Mean over all orders of tied answers."""
    optimistic: float
    """Ties counted for it. A gap to ``pessimistic`` means coarse scores or collapsed vectors."""


ByTies = TieBounds
"""Its old name."""


Recall: TypeAlias = TieBounds
"""Share of queries with a right answer among the first k (a hit rate), by tie rule, in [0, 1]."""


class Unmatched(Enum):
    """What happens to a query that has no right answer, such as a gallery image without a caption."""

    SKIP = "skip"
    """Left out, also of the denominator (Chinese-CLIP)."""
    MISS = "miss"
    """Asked, and never answered (CLIP_benchmark)."""


@dataclass(frozen=True, kw_only=True)
class BestRank:
    """Where each query's best right answer stands among the wrong ones. Shapes: (queries,), int64."""

    above: Indices
    """Wrong answers that score strictly higher than the best right one."""
    tied: Indices
    """Wrong answers with exactly the score of the best right one."""
    tied_right: Indices
    """Right answers with that score, the best one included."""
    right: Indices
    """Right answers in the gallery."""
    gallery: int

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
        """Whether a right answer of each query is among the first ``k``. Shape: (queries,), float64 in [0, 1]."""
        matched = self.right > 0
        if ties is not Ties.EXPECTED:
            before = self.above + self.tied if ties is Ties.PESSIMISTIC else self.above
            return (matched & (before < k)).astype(np.float64)
        free = np.clip(k - self.above, 0, self.tied + self.tied_right)
        # The chance that no right answer falls on a free rank, as a product over the right answers.
        missed = np.ones(len(matched))
        for number in range(int(self.tied_right.max(initial=0))):
            spots = np.maximum(self.tied + self.tied_right - number, 1)
            factor = np.clip((spots - free) / spots, 0.0, 1.0)
            missed = np.where(number < self.tied_right, missed * factor, missed)
        return np.where(matched, 1.0 - missed, 0.0)

    def ranks(self, *, ties: Ties = Ties.PESSIMISTIC) -> NDArray[np.float64]:
        """Rank of the best right answer, 1-based. Shape: (queries,); infinity for a query without a right answer."""
        # Of w wrong answers shuffled with r right ones, w / (r + 1) stand before the first right one.
        share = {Ties.PESSIMISTIC: 1.0, Ties.OPTIMISTIC: 0.0}.get(ties, 1 / (self.tied_right + 1))
        return np.where(self.right > 0, self.above + self.tied * share + 1.0, np.inf)


def best_rank(scores: Scores | Embeddings, *, positives: PositivesLike, chunk: int | None = None) -> BestRank:
    """Find where each row's best right answer stands; arguments and errors as in :func:`retrieval_metrics`."""
    return BestRank.of(
        rank_positions(scores, positives=positives, best_only=True, both=False, chunk=chunk)[0]
    )


def found_share(
    scores: Scores | Embeddings, *, positives: PositivesLike, k: int, chunk: int | None = None
) -> NDArray[np.float64]:
    """Share of a query's right answers found among the first ``k``, ties against us: recall in text search.

    It must not be compared with :func:`retrieval_metrics`; golden case i calls it ``true_recall``. Shape: (queries,).
    """
    where = rank_positions(scores, positives=positives, both=False, chunk=chunk)[0]
    found = np.bincount(where.query, weights=_ranks(where, Ties.PESSIMISTIC) <= k, minlength=where.queries)
    return found / np.maximum(np.diff(where.first()), 1)


def _ranks(where: RankPositions, ties: Ties) -> Indices:
    """Rank of every right pair: behind wrong answers of the same score or before them. Shape: (pairs,)."""
    group, members = where.tie_groups()
    inside = np.arange(len(group)) - np.searchsorted(group, group)
    waiting = where.equal - members if ties is Ties.PESSIMISTIC else 0
    return np.asarray(where.above + waiting + inside + 1)


def average_precision_at_r(where: RankPositions, *, ties: Ties = Ties.PESSIMISTIC) -> NDArray[np.float64]:
    """Average precision over the first R answers, R being the query's own number of right ones. Shape: (queries,).

    The sum of the precisions at each right answer among the first R, divided by R (Musgrave, Belongie & Lim, ECCV
    2020), not the average precision of text search.
    """
    right = np.diff(where.first())
    limit = right[where.query]
    if ties is Ties.EXPECTED:
        group, members = where.tie_groups()
        share = np.where(
            np.diff(group, prepend=-1) > 0, _expected_precision(where, members, where.slot(), limit), 0.0
        )
    else:
        rank = _ranks(where, ties)
        share = np.where(rank <= limit, (where.slot() + 1) / rank, 0.0)
    return np.bincount(where.query, weights=share, minlength=where.queries) / np.maximum(right, 1)


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
    inverse = harmonic[np.minimum(above + ranks, len(harmonic) - 1)] - harmonic[above]
    growth = (members - 1) / np.maximum(where.equal - 1, 1)
    summed = (slot + 1 - (where.above + 1) * growth) * inverse + growth * ranks
    return members / where.equal * np.where(ranks > 0, summed, 0.0)


@dataclass(frozen=True, kw_only=True)
class DirectionMetrics:
    """One direction of retrieval."""

    recall: dict[int, Recall]
    median_rank: float
    """Median rank of the best right answer, ties against us; infinity if most queries have none."""
    queries: int
    """Queries in the denominator."""
    unmatched: int
    """Queries without a right answer, left out or counted as misses as the caller chose."""
    gallery: int
    map_at_r: TieBounds | None = None
    """Mean of :func:`average_precision_at_r`; ``None`` where only best answers were counted."""

    @property
    def mean_recall(self) -> float:
        """Mean of the pessimistic recalls over the ks of this direction alone (Chinese-CLIP's MR)."""
        return float(np.mean([value.pessimistic for value in self.recall.values()]))


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics:
    """Both directions over one set of texts and images."""

    text_to_image: DirectionMetrics
    """Queries are texts, the gallery is all images."""
    image_to_text: DirectionMetrics
    """Queries are images, the gallery is all texts."""


def retrieval_metrics(
    scores: Scores | Embeddings,
    *,
    positives: PositivesLike,
    ks: Sequence[int] = (1, 5, 10),
    unmatched: Unmatched | None = None,
    chunk: int | None = None,
) -> RetrievalMetrics:
    """Recall@k, median rank and mAP@R of both directions.

    A query is answered at k when *any* of its right answers is among the first k. Text to image: the
    denominator is the texts, so an image with seven captions is the target seven times. Image to text: the
    denominator is the images, and one of the image's captions suffices. Every image is in the gallery,
    also one without a caption; whether such an image is a query must be chosen with ``unmatched``.

    Args:
        scores: Shape: (texts, images), higher is better; or :class:`Embeddings`.
        positives: Which image belongs to which text: a boolean matrix of shape (texts, images), an integer
            vector of shape (texts,) with each text's one image, or a mapping or sequence from text to images.
        ks: Lengths of answer lists, each at least 1.
        unmatched: What to do with queries that have no right answer; only needed when there are any.
        chunk: Queries scored at a time; by default as many as make about four million scores.

    Raises:
        ValueError: For a non-finite score, shapes that disagree, an index out of range, a bad k, and for
            queries without a right answer when ``unmatched`` is not given.
    """
    forward, backward = rank_positions(scores, positives=positives, chunk=chunk)
    assert backward is not None
    return RetrievalMetrics(
        text_to_image=direction_metrics(forward, ks=ks, unmatched=unmatched),
        image_to_text=direction_metrics(backward, ks=ks, unmatched=unmatched),
    )


def direction_metrics(
    found: BestRank | RankPositions, *, ks: Sequence[int] = (1, 5, 10), unmatched: Unmatched | None = None
) -> DirectionMetrics:
    """Sum up one direction; see :func:`retrieval_metrics`. mAP@R needs the rank positions of all right answers."""
    where = BestRank.of(found) if isinstance(found, RankPositions) else found
    if not ks or any(isinstance(k, bool) or k != int(k) or k < 1 for k in ks) or len(set(ks)) != len(ks):
        raise ValueError(
            f"got ks {list(ks)}, expected different whole numbers of at least 1, such as (1, 5, 10)"
        )
    matched = where.right > 0
    missing = int(np.count_nonzero(~matched))
    if missing and unmatched is None:
        raise ValueError(
            f"{missing} of {len(matched)} queries have no right answer, and unmatched was not given. "
            "Pass unmatched=Unmatched.SKIP to leave them out, unmatched=Unmatched.MISS to count them missed."
        )
    asked = matched if unmatched is Unmatched.SKIP else np.ones_like(matched)
    if not asked.any():
        raise ValueError("no query has a right answer, expected at least one. Check the positives.")

    def mean(values: dict[str, NDArray[np.float64]]) -> TieBounds:
        return TieBounds(**{rule: float(value[asked].mean()) for rule, value in values.items()})

    ranks = np.sort(where.ranks()[asked])
    middle = ranks[(len(ranks) - 1) // 2 : len(ranks) // 2 + 1]
    return DirectionMetrics(
        recall={int(k): mean({ties.value: where.hits(int(k), ties=ties) for ties in Ties}) for k in ks},
        median_rank=float(middle.mean()),
        queries=int(np.count_nonzero(asked)),
        unmatched=missing,
        gallery=where.gallery,
        map_at_r=mean({ties.value: average_precision_at_r(found, ties=ties) for ties in Ties})
        if isinstance(found, RankPositions)
        else None,
    )
