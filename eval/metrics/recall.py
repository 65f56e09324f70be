"""Retrieval metrics: where a query's right answers stand, and the share of queries answered in the first k.

Everything here is arithmetic on scores or vectors; nothing knows an encoder, an index or a data set. The one
intermediate result is :class:`RankPositions`, one row per right pair, from which every number is derived; a further
metric (reciprocal rank, bootstrap intervals) needs no second pass over the scores.

What is counted, and the tie rule, follow the definitions in golden case i and McSherry & Najork, ECIR 2008.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.best_rank import BestRank, TieBounds, Ties, average_precision_at_r
from llm2clip.eval.metrics.blockwise_scores import Embeddings, Scores
from llm2clip.eval.metrics.rank_positions import PositivesLike, RankPositions, rank_positions


class Unmatched(Enum):
    """What happens to a query that has no right answer, such as a gallery image without a caption."""

    SKIP = "skip"
    """Not asked, and not in the denominator (Chinese-CLIP)."""
    MISS = "miss"
    """Asked, and never answered (CLIP_benchmark)."""


Recall: TypeAlias = TieBounds
"""Share of queries with a right answer among the first k (a hit rate), by tie rule, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class DirectionMetrics:
    """One direction of retrieval."""

    recall: dict[int, Recall]
    """Recall by k."""
    median_rank: float
    """Median rank of the best right answer, ties against us; infinity if most queries have none."""
    queries: int
    """Queries in the denominator."""
    unmatched: int
    """Queries without a right answer, left out or counted as misses as the caller chose."""
    gallery: int
    """Answers to choose from."""
    map_at_r: TieBounds | None = None
    """Mean average precision over the first R answers, R being each query's number of right ones; see
    :func:`llm2clip.eval.metrics.best_rank.average_precision_at_r`. ``None`` where only best answers were placed."""

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
    denominator is the texts, so an image with seven captions is asked for seven times. Image to text: the
    denominator is the images, and one of the image's captions suffices. Every image is in the gallery,
    also one without a caption; whether such an image is *asked* must be said with ``unmatched``.

    Args:
        scores: Shape: (texts, images), higher is better; or :class:`Embeddings`, whose inner products are
            taken ``chunk`` rows at a time.
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
    """Sum up one direction's queries; see :func:`retrieval_metrics`. mAP@R needs the places of all right answers."""
    where = BestRank.of(found) if isinstance(found, RankPositions) else found
    if not ks or any(isinstance(k, bool) or k != int(k) or k < 1 for k in ks) or len(set(ks)) != len(ks):
        raise ValueError(
            f"got ks {list(ks)}, expected different whole numbers of at least 1, such as (1, 5, 10)"
        )
    matched = where.right > 0
    missing = int(np.count_nonzero(~matched))
    if missing and unmatched is None:
        raise ValueError(
            f"{missing} of {len(matched)} queries have no right answer, and whether they count was not said. "
            "Pass unmatched=Unmatched.SKIP to leave them out, unmatched=Unmatched.MISS to count them missed."
        )
    asked = matched if unmatched is Unmatched.SKIP else np.ones_like(matched)
    if not asked.any():
        raise ValueError("no query has a right answer, expected at least one. Check the positives.")
    recall = {
        int(k): Recall(**{ties.value: float(where.hits(int(k), ties=ties)[asked].mean()) for ties in Ties})
        for k in ks
    }
    return DirectionMetrics(
        recall=recall,
        median_rank=_median(where.ranks()[asked]),
        queries=int(np.count_nonzero(asked)),
        unmatched=missing,
        gallery=where.gallery,
        map_at_r=_mean_precision(found, asked) if isinstance(found, RankPositions) else None,
    )


def _mean_precision(found: RankPositions, asked: NDArray[np.bool_]) -> TieBounds:
    return TieBounds(
        **{ties.value: float(average_precision_at_r(found, ties=ties)[asked].mean()) for ties in Ties}
    )


def _median(ranks: NDArray[np.float64]) -> float:
    ordered = np.sort(ranks)
    middle = len(ordered) // 2
    if len(ordered) % 2 or not np.isfinite(ordered[middle]):
        return float(ordered[middle])
    return float((ordered[middle - 1] + ordered[middle]) / 2)
