"""Scores a block of queries at a time, and how many of them lie above a limit: never a whole matrix.

Of embeddings a score is the inner product summed in double precision and rounded once to single, so that equal
vectors get equal scores wherever they stand. Products in single precision, which are much faster, only sort out what
is certainly above or below a limit; what lies closer than their rounding error is computed again, pair by pair.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = "NDArray[np.floating[Any]]"
Indices: TypeAlias = "NDArray[np.int64]"

_PIECE_NUMBERS = 1 << 19
_UNIT = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Unit rows of both sides, for callers who do not want the whole score matrix in memory."""

    texts: Scores
    """Shape: (texts, dim), unit rows."""
    images: Scores
    """Shape: (images, dim), unit rows."""
    device: str | None = None
    """A torch device such as ``"cuda"`` to take the products on; NumPy on this machine's processors by default."""

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

    def swapped(self) -> Embeddings:
        """The same vectors with queries and gallery exchanged."""
        return Embeddings(texts=self.images, images=self.texts, device=self.device)


@dataclass(frozen=True, kw_only=True)
class ThresholdCounts:
    """Lines of a block (queries, or answers when ``axis`` is 0) compared with two limits each."""

    above: Indices
    """Shape: (lines,): scores above the upper limit."""
    reached: Indices
    """Shape: (lines,): scores that are at least the lower limit."""
    doubtful: tuple[Indices, Indices] | None
    """(line, place on the other axis) of the scores between the limits, where they were asked for."""


class Block(ABC):
    """Scores of some queries with the whole gallery."""

    @abstractmethod
    def weigh(
        self, lines: Indices, *, low: Scores, high: Scores, axis: int, list_up_to: int
    ) -> ThresholdCounts:
        """Count scores above ``high`` and from ``low`` on; list those between if at most ``list_up_to``."""

    @abstractmethod
    def settled(self) -> Block:
        """The same block in final scores."""

    @abstractmethod
    def values(self) -> Scores:
        """The scores as they are, in this machine's memory; good until the next block. Shape: (queries, gallery)."""


class Source(ABC):
    """Where scores come from."""

    final: bool
    """Whether the scores of :meth:`block` are final: limits can be met exactly."""
    shape: tuple[int, int]
    """(queries, gallery)."""

    @abstractmethod
    def pairs(self, rows: Indices, columns: Indices) -> Scores:
        """Final scores of single pairs. Shape: (pairs,)."""

    @abstractmethod
    def margin(self, index: Indices, *, axis: int) -> NDArray[np.float64]:
        """How far a block's score may be from the final one, by query (axis 1) or by answer (axis 0)."""

    @abstractmethod
    def block(self, start: int, stop: int) -> Block:
        """Scores of the queries ``start`` to ``stop - 1``. ``ValueError`` for one that is not finite."""


def checked_shape(scores: Scores | Embeddings) -> tuple[int, int]:
    """(queries, gallery), both at least 1; anything else is a ``ValueError``."""
    shape = scores.shape
    if len(shape) != 2 or not all(shape):
        raise ValueError(
            f"got scores of shape {shape}, expected (queries, gallery) with at least one of each"
        )
    return int(shape[0]), int(shape[1])


class ArrayBlock(Block):
    """A block in NumPy."""

    def __init__(self, values: Scores, *, again: ProductSource | None = None, start: int = 0) -> None:
        self._values = values
        self._again = again
        self._start = start
        self._final: ArrayBlock | None = None

    def weigh(
        self, lines: Indices, *, low: Scores, high: Scores, axis: int, list_up_to: int
    ) -> ThresholdCounts:
        """See :class:`Block`."""
        values = self._values
        if len(lines) < values.shape[1 - axis]:
            values = values[lines] if axis else values[:, lines]
        spread = (slice(None), None) if axis else (None, slice(None))
        over = values > high[spread]
        from_low = values >= low[spread]
        count = _true_by_row if axis else _true_by_column
        above, reached = count(over), count(from_low)
        found = None
        if int(reached.sum()) - int(above.sum()) <= list_up_to:
            np.logical_xor(over, from_low, out=over)
            row, column = np.divmod(np.flatnonzero(over), over.shape[1])
            found = (row, column) if axis else (column, row)
        return ThresholdCounts(above=above, reached=reached, doubtful=found)

    def settled(self) -> Block:
        """See :class:`Block`."""
        if self._again is None:
            return self
        if self._final is None:
            self._final = ArrayBlock(self._again.exact(self._start, self._start + len(self._values)))
        return self._final

    def values(self) -> Scores:
        """See :class:`Block`."""
        return self._values


def _true_by_row(mask: NDArray[np.bool_]) -> Indices:
    return np.fromiter((np.count_nonzero(row) for row in mask), dtype=np.int64, count=len(mask))


def _true_by_column(mask: NDArray[np.bool_]) -> Indices:
    total = np.zeros(mask.shape[1], dtype=np.int64)
    ones = mask.view(np.uint8)
    for start in range(
        0, len(ones), 255
    ):  # as many as one byte can count: additions of bytes are the fastest
        total += np.add.reduce(ones[start : start + 255], axis=0, dtype=np.uint8)
    return total


class MatrixSource(Source):
    """Scores that are there already."""

    final = True

    def __init__(self, scores: Scores) -> None:
        self.shape = (scores.shape[0], scores.shape[1])
        self._scores = scores

    def pairs(self, rows: Indices, columns: Indices) -> Scores:
        """See :class:`Source`."""
        return self._scores[rows, columns]

    def margin(self, index: Indices, *, axis: int) -> NDArray[np.float64]:
        """See :class:`Source`."""
        return np.zeros(len(index))

    def block(self, start: int, stop: int) -> Block:
        """See :class:`Source`."""
        values = self._scores[start:stop]
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise not_finite(values[row, column], query=start + int(row), answer=int(column))
        return ArrayBlock(values)


class ProductSource(Source):
    """Inner products in NumPy."""

    final = False

    def __init__(self, given: Embeddings) -> None:
        self.shape = given.shape
        self._texts, self._images = given.texts, given.images
        self._single = _single(given.images)
        self._norms = checked_norms(given)
        self._share = rounding_share(given.texts.shape[1])
        self._room: NDArray[np.float32] | None = None

    def pairs(self, rows: Indices, columns: Indices) -> Scores:
        """See :class:`Source`."""
        scores = np.empty(len(rows), dtype=np.float32)
        step = max(1, _PIECE_NUMBERS // max(1, self._texts.shape[1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            left, right = (
                side[index[part]].astype(np.float64)
                for side, index in ((self._texts, rows), (self._images, columns))
            )
            scores[part] = np.einsum("pd,pd->p", left, right)
        return scores

    def margin(self, index: Indices, *, axis: int) -> NDArray[np.float64]:
        """See :class:`Source`."""
        own, other = self._norms if axis else self._norms[::-1]
        return np.asarray(own[index] * (other.max() * self._share))

    def block(self, start: int, stop: int) -> Block:
        """See :class:`Source`."""
        if self._room is None or len(self._room) < stop - start:
            self._room = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        values = self._room[: stop - start]
        np.matmul(_single(self._texts[start:stop]), self._single.T, out=values)
        return ArrayBlock(values, again=self, start=start)

    def exact(self, start: int, stop: int) -> NDArray[np.float32]:
        """Final scores of a block, for where nearly all are doubtful. Shape: (stop - start, gallery)."""
        values = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        queries = self._texts[start:stop].astype(np.float64)
        step = max(1, _PIECE_NUMBERS // max(1, queries.shape[1]))
        for first in range(0, self.shape[1], step):
            part = slice(first, first + step)
            values[:, part] = queries @ self._images[part].astype(np.float64).T
        return values


def _single(vectors: Scores) -> NDArray[np.float32]:
    return vectors if vectors.dtype == np.float32 else vectors.astype(np.float32)


def rounding_share(dim: int) -> float:
    """How far a product in single precision may be from the exact one, as a share of the two norms' product.

    The sum of ``dim`` roundings never exceeds ``dim`` units; unless they conspire it stays below 8 times the square
    root of ``dim`` but for one case in 10^13 (Higham & Mary, SIAM J. Sci. Comput. 41, 2019). Eight more units cover
    rounding of vectors given in double precision, of the limits, and of the final score.
    """
    return (min(dim, 8.0 * math.sqrt(dim)) + 8.0) * _UNIT


def checked_norms(given: Embeddings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Norms of both sides' rows. ``ValueError`` if a product could be other than finite."""
    texts, images = (_norms(side) for side in (given.texts, given.images))
    if not texts.max() * images.max() < np.finfo(np.float32).max / 4:  # also where either is not a number
        query, answer = (int(np.argmax(~np.isfinite(side))) for side in (texts, images))
        with np.errstate(invalid="ignore", over="ignore"):
            value = np.float32(
                given.texts[query].astype(np.float64) @ given.images[answer].astype(np.float64)
            )
        if np.isfinite(value):
            raise ValueError(
                f"got vectors with norms up to {max(texts.max(), images.max()):.3g}, expected unit rows"
            )
        raise not_finite(value, query=query, answer=answer)
    return texts, images


def _norms(vectors: Scores) -> NDArray[np.float64]:
    squares = np.empty(len(vectors))
    step = max(1, _PIECE_NUMBERS // max(1, vectors.shape[1]))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(vectors), step):
            part = vectors[start : start + step].astype(np.float64)
            squares[start : start + step] = np.einsum("nd,nd->n", part, part)
    return np.sqrt(squares)


def not_finite(value: object, *, query: int, answer: int) -> ValueError:
    """The error for a score that cannot be ordered."""
    return ValueError(
        f"got the score {value} for query {query} and answer {answer}, expected finite numbers. "
        "A model that returns NaN has no recall: look for overflow in half precision."
    )
