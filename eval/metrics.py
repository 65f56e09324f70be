"""Retrieval metrics: where a query's right answers stand, and the share of queries answered in the first k.

Everything here is NumPy on scores or vectors; nothing knows an encoder, an index or a data set. The one
intermediate result is :class:`Standing`, one row per query, from which every number is derived; a further
metric (reciprocal rank, bootstrap intervals) needs no second pass over the scores.

What is counted, and the tie rule, follow the definitions in golden case i and McSherry & Najork, ECIR 2008.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


class Unmatched(Enum):
    """What happens to a query that has no right answer, such as a gallery picture without a caption."""

    SKIP = "skip"
    """Not asked, and not in the denominator (Chinese-CLIP)."""
    MISS = "miss"
    """Asked, and never answered (CLIP_benchmark)."""


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


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Share of queries with a right answer among the first k (a hit rate), by tie rule, in [0, 1]."""

    pessimistic: float
    """Ties counted against us: the value to report."""
    expected: float
    """Mean over all orders of tied answers."""
    optimistic: float
    """Ties counted for us. A gap to ``pessimistic`` means coarse scores or collapsed vectors."""


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
    """Recall@k of both directions.

    A query is answered at k when *any* of its right answers is among the first k. Text to image: the
    denominator is the texts, so a picture with seven captions is asked for seven times. Image to text: the
    denominator is the images, and one of the picture's captions suffices. Every image is in the gallery,
    also one without a caption; whether such an image is *asked* must be said with ``unmatched``.

    Args:
        scores: Shape: (texts, images), higher is better; or :class:`Embeddings`, whose inner products are
            taken ``chunk`` rows at a time.
        positives: Which image belongs to which text: a boolean matrix of shape (texts, images), an integer
            vector of shape (texts,) with each text's one image, or a mapping or sequence from text to images.
        ks: Lengths of answer lists, each at least 1.
        unmatched: What to do with queries that have no right answer; only needed when there are any.
        chunk: Queries scored at a time; by default as many as make about 16 million scores.

    Raises:
        ValueError: For a non-finite score, shapes that disagree, an index out of range, a bad k, and for
            queries without a right answer when ``unmatched`` is not given.
    """
    pairs = Positives.of(positives, shape=_checked_shape(scores))
    forward = standing(scores, positives=pairs, chunk=chunk)
    flipped = (
        Embeddings(texts=scores.images, images=scores.texts) if isinstance(scores, Embeddings) else scores.T
    )
    backward = standing(flipped, positives=pairs.transposed(), chunk=chunk)
    return RetrievalMetrics(
        text_to_image=direction_metrics(forward, ks=ks, unmatched=unmatched),
        image_to_text=direction_metrics(backward, ks=ks, unmatched=unmatched),
    )


def direction_metrics(
    where: Standing, *, ks: Sequence[int] = (1, 5, 10), unmatched: Unmatched | None = None
) -> DirectionMetrics:
    """Sum up the standing of one direction's queries; see :func:`retrieval_metrics`."""
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
    )


def standing(scores: Scores | Embeddings, *, positives: PositivesLike, chunk: int | None = None) -> Standing:
    """Find where each row's best right answer stands; rows are queries, columns the gallery.

    Args:
        scores: Shape: (queries, gallery), or :class:`Embeddings` whose ``texts`` are the queries.
        positives: As in :func:`retrieval_metrics`, rows are queries.
        chunk: Rows looked at together.

    Raises:
        ValueError: As :func:`retrieval_metrics`.
    """
    pairs = Positives.of(positives, shape=_checked_shape(scores))
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
    pairs = Positives.of(positives, shape=_checked_shape(scores))
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


def _median(ranks: NDArray[np.float64]) -> float:
    ordered = np.sort(ranks)
    middle = len(ordered) // 2
    if len(ordered) % 2 or not np.isfinite(ordered[middle]):
        return float(ordered[middle])
    return float((ordered[middle - 1] + ordered[middle]) / 2)


def _checked_shape(scores: Scores | Embeddings) -> tuple[int, int]:
    shape = scores.shape
    if len(shape) != 2 or not all(shape):
        raise ValueError(
            f"got scores of shape {shape}, expected (queries, gallery) with at least one of each"
        )
    return int(shape[0]), int(shape[1])


def _blocks(scores: Scores | Embeddings, chunk: int | None) -> Iterator[tuple[int, Scores]]:
    """Yield (first row, scores of some rows), refusing scores that cannot be ordered."""
    rows, columns = _checked_shape(scores)
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
