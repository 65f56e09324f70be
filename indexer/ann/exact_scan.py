"""Exhaustive search of the stored halves where they lie: FAISS reads the mapped segments, nothing is copied or kept.

This is the exact search, the scan of what came after a structure was made, and the scan of what a filter leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import import_faiss
from llm2clip.indexer.ann.rerank import SLACK
from llm2clip.indexer.storage.vector_segments import Rows, Vectors

TOGETHER = 24
"""From so many queries on, rows are decoded once for all of them and compared by matrix multiplication."""
_BLOCK = 8_192
_NONE = np.float32(-np.inf)

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class _Part:
    """A run of rows that lie together."""

    first: int
    rows: Rows
    index: Any
    """FAISS over the memory of ``rows``."""


@final
class ExactScan:
    """Finds rows by comparing every one, in float32.

    Args:
        vectors: the stored rows.
        first: the id from which on they are searched.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
    """

    exact = True
    slack = SLACK

    def __init__(self, vectors: Vectors, *, first: int = 0) -> None:
        self._faiss = import_faiss()
        self.first, self.rows, self._dim = first, len(vectors), vectors.dim
        self._parts: list[_Part] = []
        start = 0
        for segment in vectors.segments:
            here = segment[max(0, first - start) :]
            if len(here):
                begins = start + len(segment) - len(here)
                self._parts.append(_Part(begins, here, _over(self._faiss, here, self._dim)))
            start += len(segment)

    def candidates(
        self, queries: NDArray[np.float32], *, count: int, allowed: NDArray[np.bool_] | None
    ) -> Found:
        """The nearest rows of each query, nearest first.

        Args:
            queries: Shape: (n, dim), float32.
            count: how many rows to find.
            allowed: which ids may be found, all if None. Shape: (rows,), bool.

        Returns:
            scores (n, count) float32, and ids (n, count) int64, -1 where there are no more.
        """
        if len(queries) < TOGETHER and len(self._parts) == 1:
            return self._one_by_one(self._parts[0], queries, count, allowed)
        best, ids = _nothing(len(queries), count)
        if len(queries) < TOGETHER:
            for part in self._parts:
                best, ids = merged((best, ids), self._one_by_one(part, queries, count, allowed))
        else:
            for part in self._parts:
                best, ids = self._together(part, queries, (best, ids), allowed)
        return best, ids

    def _one_by_one(
        self, part: _Part, queries: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None
    ) -> Found:
        if allowed is None:
            scores, ids = part.index.search(queries, count)
        else:
            selector = selector_of(self._faiss, allowed[part.first : part.first + len(part.rows)])
            params = self._faiss.SearchParameters(sel=selector)
            scores, ids = part.index.search(queries, count, params=params)
        if part.first:
            ids[ids >= 0] += part.first
        return scores, ids

    def _together(
        self, part: _Part, queries: NDArray[np.float32], found: Found, allowed: NDArray[np.bool_] | None
    ) -> Found:
        best, ids = found
        count, flipped = best.shape[1], np.ascontiguousarray(queries.T)
        for start in range(0, len(part.rows), _BLOCK):
            rows = part.rows[start : start + _BLOCK]
            numbers = np.arange(part.first + start, part.first + start + len(rows))
            if allowed is not None:
                here = allowed[numbers[0] : numbers[0] + len(rows)]
                rows, numbers = rows[here], numbers[here]
            if not len(rows):
                continue
            scores = (self._decoded(part.index, rows) @ flipped).T
            if len(numbers) > 4 * count:
                scores, kept = _promising(scores, best[:, -1], count)
                numbers = np.where(kept < 0, -1, numbers[kept])
            else:
                numbers = np.broadcast_to(numbers, scores.shape)
            best, ids = merged((best, ids), (scores, numbers))
        return best, ids

    def _decoded(self, index: Any, rows: Rows) -> NDArray[np.float32]:  # noqa: ANN401
        decoded: NDArray[np.float32] = index.sa_decode(np.ascontiguousarray(rows).view(np.uint8))
        return decoded


def selector_of(faiss: ModuleType, allowed: NDArray[np.bool_]) -> Any:  # noqa: ANN401
    """FAISS's selector of the ids that are allowed, which keeps its bits alive."""
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def merged(one: Found, other: Found) -> Found:
    """The best of two findings, as many as the first holds, best first; no id is -1 but where there are no more."""
    count = one[0].shape[1]
    scores = np.concatenate([one[0], np.where(other[1] < 0, _NONE, other[0])], axis=1)
    ids = np.concatenate([one[1], other[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _nothing(queries: int, count: int) -> Found:
    return np.full((queries, count), _NONE), np.full((queries, count), -1, dtype=np.int64)


def _promising(scores: NDArray[np.float32], worst: NDArray[np.float32], count: int) -> Found:
    """The best ``count`` of each row: scores and columns, -1 where they are no better than what is known."""
    columns = np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]
    kept = np.take_along_axis(scores, columns, axis=1)
    return kept, np.where(kept > worst[:, None], columns, -1)


def _over(faiss: ModuleType, rows: Rows, dim: int) -> Any:  # noqa: ANN401
    """A FAISS index whose codes are the memory of ``rows``; a copy where this FAISS cannot look at others' memory."""
    index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    codes, there = index.codes, np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
    if hasattr(codes, "view_data"):
        codes.is_owned = False
        codes.view_data = codes.c_ptr = faiss.swig_ptr(there)
        codes.view_size = codes.c_size = there.size
    else:
        faiss.copy_array_to_vector(there, codes)
    index.ntotal = len(rows)
    return index
