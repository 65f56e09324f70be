"""Which answers are right for which query, kept as index pairs so that large sets need no boolean matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

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
    """Queries."""
    columns: int
    """Answers in the gallery."""

    @classmethod
    def of(cls, positives: PositivesLike, *, shape: tuple[int, int]) -> Positives:
        """Read any of the accepted forms.

        Args:
            positives: Boolean matrix of ``shape``; integer vector with one answer per query; or a mapping or
                sequence that gives a query's answer or answers. A query absent from a mapping has none.
            shape: (queries, gallery).

        Raises:
            ValueError: If the form disagrees with ``shape``, an index is out of range, or there is no pair.
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

    def per_row(self) -> NDArray[np.int64]:
        """Right answers of each query. Shape: (queries,)."""
        return np.bincount(self.row, minlength=self.rows).astype(np.int64)

    def between(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of the queries ``start`` to ``stop - 1``, as (query - start, answer)."""
        first, last = np.searchsorted(self.row, (start, stop))
        return self.row[first:last] - start, self.column[first:last]


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
