"""Hubs: items that are returned for far too many queries, and two corrections that rank differently.

Corrections subtract a number from every score of an answer. They look at the other queries of the test (transductive)
and assume that every answer is the target about equally often, which holds for no search engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import Embeddings, Scores, checked_shape
from llm2clip.eval.metrics.rank_positions import Positives, PositivesLike, rank_positions, score_source
from llm2clip.eval.metrics.recall import RetrievalMetrics, Unmatched, direction_metrics


@dataclass(frozen=True, kw_only=True)
class Hubness:
    """How unevenly the gallery is returned over the first k answers."""

    skewness: float
    """Third standardised moment of the number of times each item is returned; 0 is even, above 1 a few dominate."""
    never: float
    top_share: float
    """Share of all answers that fall on the hundredth of the items (at least one) returned most often."""
    k: int


class Correction(Enum):
    """What is subtracted from the scores of an answer."""

    DUAL_SOFTMAX = "dual-softmax"
    """log(sum over queries of exp(scale x score)) / (2 x scale): a product of softmaxes over answers and queries."""
    CSLS = "csls"
    """Half the answer's mean score with its k nearest queries (Conneau and others, ICLR 2018)."""


def hubness(scores: Scores | Embeddings, *, k: int = 10) -> Hubness:
    """Skew of the k-occurrence (Radovanovic et al., JMLR 2010), rows as queries; ties share last places."""
    gallery = checked_shape(scores)[1]
    if not 1 <= k <= gallery:
        raise ValueError(f"got k {k}, expected 1 to {gallery}, the size of the gallery")
    times = occurrences(scores, k=k)
    centred = times - times.mean()
    deviation = float(np.sqrt((centred**2).mean()))
    top = np.sort(times)[::-1][: max(1, gallery // 100)]
    return Hubness(
        # A spread that is only rounding of shared places is none.
        skewness=float((centred**3).mean()) / deviation**3 if deviation > 1e-9 * times.mean() else 0.0,
        never=float(np.mean(times == 0)),
        top_share=float(top.sum() / times.sum()),
        k=k,
    )


def occurrences(scores: Scores | Embeddings, *, k: int) -> NDArray[np.float64]:
    """How often each item of the gallery is among the first k. Shape: (gallery,), float64, summing to k x queries."""
    times = np.zeros(checked_shape(scores)[1])
    for block in _blocks(scores):
        last = np.partition(block, -k, axis=1)[:, -k, None]
        over = block > last
        row, column = np.nonzero(block == last)
        free = (k - np.count_nonzero(over, axis=1)) / np.bincount(row, minlength=len(block))
        times += np.count_nonzero(over, axis=0)
        times += np.bincount(column, weights=free[row], minlength=len(times))
    return times


@dataclass(frozen=True, kw_only=True)
class Corrector:
    """Settings of a correction."""

    correction: Correction
    scale: float = 100.0
    """Of dual softmax: what scores are multiplied with; CLIP's learned scale is 100."""
    neighbours: int = 10
    """Of CSLS: nearest queries to take the mean over."""

    def __post_init__(self) -> None:
        if not self.scale > 0 or self.neighbours < 1:
            raise ValueError(
                f"got scale {self.scale} and {self.neighbours} neighbours, expected positive numbers"
            )

    def offsets(self, scores: Scores | Embeddings) -> NDArray[np.float64]:
        """What to subtract from the scores of each column. Shape: (gallery,), float64."""
        if self.correction is Correction.CSLS:
            return self._nearness(scores) / 2
        return _log_sums(scores, scale=self.scale) / (2 * self.scale)

    def _nearness(self, scores: Scores | Embeddings) -> NDArray[np.float64]:
        """Mean score of each column with its nearest rows. Shape: (gallery,)."""
        queries, gallery = checked_shape(scores)
        count = min(self.neighbours, queries)
        best = np.empty((0, gallery))
        for block in _blocks(scores):
            best = np.concatenate([best, block])
            if len(best) > count:
                best = np.partition(best, len(best) - count, axis=0)[-count:]
        return np.asarray(best.mean(axis=0, dtype=np.float64))


def corrected_metrics(
    scores: Scores | Embeddings,
    *,
    positives: PositivesLike,
    corrector: Corrector,
    ks: Sequence[int] = (1, 5, 10),
    unmatched: Unmatched | None = None,
) -> RetrievalMetrics:
    """Metrics of both directions after a correction; arguments and errors as in ``retrieval_metrics``."""
    pairs = Positives.of(positives, shape=checked_shape(scores))
    swapped = scores.swapped() if isinstance(scores, Embeddings) else scores.T
    found = []
    for one, own in ((scores, pairs), (swapped, pairs.transposed())):
        ranked = rank_positions(corrected(one, corrector=corrector), positives=own, both=False)[0]
        found.append(direction_metrics(ranked, ks=ks, unmatched=unmatched))
    return RetrievalMetrics(text_to_image=found[0], image_to_text=found[1])


def corrected(scores: Scores | Embeddings, *, corrector: Corrector) -> Scores | Embeddings:
    """Scores after a correction, rows as queries; of embeddings again embeddings, with one more dimension."""
    offset = corrector.offsets(scores)
    if not isinstance(scores, Embeddings):
        return np.asarray(scores - offset)
    texts, images = (np.asarray(rows, dtype=np.float32) for rows in (scores.texts, scores.images))
    ones = np.ones((len(texts), 1), dtype=np.float32)
    return Embeddings(
        texts=np.concatenate([texts, ones], axis=1),
        images=np.concatenate([images, -offset.astype(np.float32)[:, None]], axis=1),
        device=scores.device,
    )


def _blocks(scores: Scores | Embeddings) -> Iterator[Scores]:
    return (block.values() for _, _, block in score_source(scores).blocks())


def _log_sums(scores: Scores | Embeddings, *, scale: float) -> NDArray[np.float64]:
    """Logarithm of the sum over rows of exp(scale x score). Shape: (gallery,)."""
    gallery = checked_shape(scores)[1]
    most, total = np.full(gallery, -np.inf), np.zeros(gallery)
    for block in _blocks(scores):
        scaled = block * np.asarray(scale, dtype=block.dtype)
        new = np.maximum(most, scaled.max(axis=0))
        total *= np.exp(most - new)
        total += np.exp(scaled - new.astype(scaled.dtype)).sum(axis=0, dtype=np.float64)
        most = new
    return most + np.log(total)
