"""Scores of a block of queries with the whole gallery: float64 inner products, rounded once to float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = "NDArray[np.floating[Any]]"
Indices: TypeAlias = "NDArray[np.int64]"

_BLOCK_SCORES = 1 << 22
PIECE_NUMBERS = 1 << 20
"""Numbers of the gallery that are held in float64 at a time."""


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Unit rows of texts and images: scores are their inner products."""

    texts: Scores
    """Shape: (texts, dim), unit rows."""
    images: Scores
    """Shape: (images, dim), unit rows."""
    device: str | None = None
    """A torch device such as ``"cuda"`` for the products; NumPy by default."""

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


def checked_shape(scores: Scores | Embeddings) -> tuple[int, int]:
    """(queries, gallery), both at least 1; anything else is a ``ValueError``."""
    shape = scores.shape
    if len(shape) != 2 or not all(shape):
        raise ValueError(
            f"got scores of shape {shape}, expected (queries, gallery) with at least one of each"
        )
    return int(shape[0]), int(shape[1])


class Block(ABC):
    """Scores of some queries (rows) with the whole gallery (columns)."""

    @abstractmethod
    def put(self, rows: Indices, columns: Indices, scores: Scores) -> None:
        """Set single scores."""

    @abstractmethod
    def count(self, lines: Indices, limits: Scores, *, axis: int) -> tuple[Indices, Indices]:
        """How many scores lie above each limit and equal it, in rows (``axis`` 1) or columns. Shapes: (lines,)."""

    @abstractmethod
    def values(self) -> Scores:
        """The scores in main memory, valid until the next block. Shape: (rows, gallery)."""


class ScoreSource(ABC):
    """Where scores come from."""

    shape: tuple[int, int]
    """(queries, gallery)."""

    @abstractmethod
    def pairs(self, rows: Indices, columns: Indices) -> Scores:
        """Scores of single pairs. Shape: (pairs,)."""

    @abstractmethod
    def block(self, start: int, stop: int) -> Block:
        """Scores of the queries ``start`` to ``stop - 1``; ``ValueError`` if one is not finite."""

    def blocks(self, chunk: int | None = None) -> Iterator[tuple[int, int, Block]]:
        """(start, stop, block) over all queries, by default about four million scores at a time."""
        step = chunk or max(1, _BLOCK_SCORES // self.shape[1])
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            yield start, stop, self.block(start, stop)


@final
class ArrayBlock(Block):
    """A block in NumPy."""

    def __init__(self, values: Scores, start: int) -> None:
        self._values = values
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0].tolist()
            raise not_finite(values[row, column], query=start + row, answer=column)

    def put(self, rows: Indices, columns: Indices, scores: Scores) -> None:
        """See :class:`Block`."""
        self._values[rows, columns] = scores

    def count(self, lines: Indices, limits: Scores, *, axis: int) -> tuple[Indices, Indices]:
        """See :class:`Block`."""
        values = self._values
        if len(lines) < values.shape[1 - axis]:
            values = values[lines] if axis else values[:, lines]
        limits = limits[:, None] if axis else limits[None]
        above, reached = (_true(mask, axis) for mask in (values > limits, values >= limits))
        return above, reached - above

    def values(self) -> Scores:
        """See :class:`Block`."""
        return self._values


def _true(mask: NDArray[np.bool_], axis: int) -> Indices:
    if axis:
        return np.fromiter(map(np.count_nonzero, mask), dtype=np.int64, count=len(mask))
    total = np.zeros(mask.shape[1], dtype=np.int64)
    # Adding bytes is fastest, and a byte counts to 255.
    for start in range(0, len(mask), 255):
        total += np.add.reduce(mask[start : start + 255].view(np.uint8), axis=0, dtype=np.uint8)
    return total


@final
class MatrixSource(ScoreSource):
    """A matrix of scores, compared as it is."""

    def __init__(self, scores: Scores) -> None:
        self.shape = (scores.shape[0], scores.shape[1])
        self._scores = scores

    def pairs(self, rows: Indices, columns: Indices) -> Scores:
        """See :class:`ScoreSource`."""
        return self._scores[rows, columns]

    def block(self, start: int, stop: int) -> Block:
        """See :class:`ScoreSource`."""
        return ArrayBlock(self._scores[start:stop], start)


@final
class ProductSource(ScoreSource):
    """Inner products in NumPy."""

    def __init__(self, given: Embeddings) -> None:
        self.shape = given.shape
        self._texts, self._images = given.texts, given.images
        self._room = np.empty((0, self.shape[1]), dtype=np.float32)

    def pairs(self, rows: Indices, columns: Indices) -> Scores:
        """See :class:`ScoreSource`."""
        scores = np.empty(len(rows), dtype=np.float32)
        step = max(1, PIECE_NUMBERS // max(1, self._texts.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(rows), step):
                part = slice(start, start + step)
                left, right = self._texts[rows[part]], self._images[columns[part]]
                scores[part] = np.einsum("pd,pd->p", left, right, dtype=np.float64)
        return scores

    def block(self, start: int, stop: int) -> Block:
        """See :class:`ScoreSource`."""
        if len(self._room) < stop - start:
            self._room = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        values = self._room[: stop - start]
        queries = self._texts[start:stop].astype(np.float64)
        step = max(1, PIECE_NUMBERS // max(1, queries.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, self.shape[1], step):
                part = slice(first, first + step)
                values[:, part] = queries @ self._images[part].astype(np.float64).T
        return ArrayBlock(values, start)


def not_finite(value: object, *, query: int, answer: int) -> ValueError:
    """The error for a score that cannot be ordered."""
    return ValueError(
        f"got the score {value} for query {query} and answer {answer}, expected finite numbers. "
        "A model that returns NaN has no recall: look for overflow in half precision."
    )
