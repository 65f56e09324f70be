"""Metrics of a whole list of right answers: average precision over the first R, and discounted gain.

Under ties each is given by all three rules. Expected values are means over all orders of tied answers, in closed form
(McSherry & Najork, ECIR 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.best_rank import TieBounds, Ties
from llm2clip.eval.metrics.blockwise_scores import Embeddings, Indices, Scores, checked_shape
from llm2clip.eval.metrics.positives import Positives
from llm2clip.eval.metrics.rank_positions import RankPositions, rank_positions


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


@dataclass(frozen=True, kw_only=True)
class Relevance:
    """Judged (text, image) pairs with gains; what is not listed has gain 0."""

    text: NDArray[np.int64]
    """Shape: (pairs,)."""
    image: NDArray[np.int64]
    """Shape: (pairs,)."""
    gain: NDArray[np.float64]
    """Shape: (pairs,): 0 or more, used as it is; give ``2**grade - 1`` for the exponential form."""

    def __post_init__(self) -> None:
        sizes = {len(self.text), len(self.image), len(self.gain)}
        if len(sizes) != 1:
            raise ValueError(f"got {sorted(sizes)} texts, images and gains, expected as many of each")
        if not np.isfinite(self.gain).all() or (self.gain < 0).any():
            bad = self.gain[~np.isfinite(self.gain) | (self.gain < 0)][0]
            raise ValueError(f"got the gain {bad}, expected finite numbers from 0 on")
        pairs = np.stack([self.text, self.image])
        if np.unique(pairs, axis=1).shape[1] != len(self.text):
            raise ValueError("got a pair of text and image twice, expected one gain for each pair")


def graded_gain(
    scores: Scores | Embeddings, *, relevance: Relevance, ks: Sequence[int] = (10,), chunk: int | None = None
) -> tuple[dict[int, TieBounds], dict[int, TieBounds]]:
    """Normalised discounted cumulative gain, text to image and image to text, by k.

    Gains are divided by log2(rank + 1), summed over the first k, and divided by what the best order would give: trec's
    and sentence-transformers' form. The mean is over queries with a gain above 0.

    Raises:
        ValueError: As ``retrieval_metrics``; also if no gain is above 0.
    """
    shape = checked_shape(scores)
    table: dict[int, set[int]] = {}
    for text, image in zip(relevance.text.tolist(), relevance.image.tolist(), strict=True):
        table.setdefault(text, set()).add(image)
    rows, columns = rank_positions(scores, positives=Positives.of(table, shape=shape), chunk=chunk)
    assert columns is not None
    key = relevance.text * np.int64(shape[1]) + relevance.image
    order = np.argsort(key)
    found = []
    for where, text, image in ((rows, rows.query, rows.answer), (columns, columns.answer, columns.query)):
        gain = relevance.gain[order][np.searchsorted(key[order], text * np.int64(shape[1]) + image)]
        found.append({k: _mean_gain(where, gain, k) for k in ks})
    return found[0], found[1]


def _mean_gain(where: RankPositions, gain: NDArray[np.float64], k: int) -> TieBounds:
    asked = np.bincount(where.query, weights=gain, minlength=where.queries) > 0
    if not asked.any():
        raise ValueError("no query has an answer with a gain above 0, expected at least one")
    return TieBounds(
        **{ties.value: float(discounted_gain(where, gain, k, ties=ties)[asked].mean()) for ties in Ties}
    )


def discounted_gain(
    where: RankPositions, gain: NDArray[np.float64], k: int, *, ties: Ties = Ties.PESSIMISTIC
) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain at ``k`` of each query.

    Args:
        where: Places of all judged pairs.
        gain: Shape: (pairs,): gains in the order of ``where``.
        k: Length of the list of answers, at least 1.
        ties: Order of equal scores.

    Returns:
        Shape: (queries,), float64 in [0, 1]; 0 where all gains are 0.
    """
    if k < 1:
        raise ValueError(f"got k {k}, expected at least 1")
    summed = np.concatenate(([0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))))  # over 0, 1, ... k ranks
    group = where.tie_groups()[0]
    if ties is Ties.EXPECTED:
        ends = (np.minimum(where.above, k), np.minimum(where.above + where.equal, k))
        value = gain * (summed[ends[1]] - summed[ends[0]]) / where.equal
    else:
        best_first = np.lexsort((-gain, group))
        inside = np.empty(len(group), dtype=np.int64)
        inside[best_first] = np.arange(len(group)) - np.searchsorted(group, group)
        last = where.equal - 1 - inside  # the highest gain at the group's end
        before = np.minimum(where.above + (inside if ties is Ties.OPTIMISTIC else last), k)
        value = gain * (summed[np.minimum(before + 1, k)] - summed[before])
    reached = np.bincount(where.query, weights=value, minlength=where.queries)
    ideal_order = np.lexsort((-gain, where.query))
    slot = np.minimum(where.slot(), k)
    ideal = gain[ideal_order] * (summed[np.minimum(slot + 1, k)] - summed[slot])
    best = np.bincount(where.query, weights=ideal, minlength=where.queries)
    return np.where(best > 0, reached / np.where(best > 0, best, 1.0), 0.0)
