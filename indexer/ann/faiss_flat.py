"""Exact search: the file of a flat FAISS index, exact scan and exact scores. The only module that imports faiss.

The rows of the file are the stored float16 vectors, so that either can be restored from the other.

FAISS scans the mapped segments without a copy: all rows, those newer than the ANN index, or those that a filter
allows. What it or an ANN index proposes is re-ranked here. A score is the inner product of a float32 query and a
stored float16 row, summed in float64 and rounded to float32: the same for equal rows wherever they lie and however
many queries are searched at once, which FAISS's float32 sums are not.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from io import BufferedWriter
from pathlib import Path
from types import ModuleType
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import create_new, package_version, regular_size
from llm2clip.indexer.core.errors import FaissNotInstalledError, IndexDamagedError
from llm2clip.indexer.core.results import StoredVectors
from llm2clip.indexer.storage.vector_segments import Rows


def import_faiss() -> ModuleType:
    """The faiss module of whichever wheel is installed."""
    try:
        import faiss
    except ImportError as error:
        raise FaissNotInstalledError(
            f"searching and building need FAISS, which cannot be imported ({error}). "
            "Install it: pip install 'llm2clip-retrieval[cpu]' (or [gpu])"
        ) from error
    found: ModuleType = faiss
    return found


WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs", "faiss")
"""Distributions of the module ``faiss``; they overwrite one another."""


def wheel() -> str:
    """The installed FAISS, without importing it: ``faiss-cpu 1.15.1 (no GPU)``."""
    if find_spec("faiss") is None:
        return "none: pip install 'llm2clip-retrieval[cpu]' (or [gpu])"
    names = [f"{name} {found}" for name in WHEELS if (found := package_version(name))]
    if len(names) > 1:
        return f"{' and '.join(names)} (they overwrite each other: keep one)"
    return f"{names[0]} ({'GPU' if 'gpu' in names[0] else 'no GPU'})" if names else "not installed by pip"


def has_gpu(faiss: ModuleType) -> bool:
    """Whether this build of FAISS can use a GPU."""
    return hasattr(faiss, "StandardGpuResources")


def read_file(path: Path, *, flags: int) -> Any:  # noqa: ANN401
    """The index in a file of FAISS, which may be damaged or come from a stranger.

    No vector in it can be longer than the file, so that FAISS allocates no more than that for any.

    Raises:
        IndexDamagedError: it is none that this FAISS reads.
    """
    faiss = import_faiss()
    limits = [
        (getattr(faiss, f"get_{name}"), getattr(faiss, f"set_{name}"))
        for name in ("deserialization_vector_byte_limit", "deserialization_loop_limit")
        if hasattr(faiss, f"set_{name}")  # since FAISS 1.14
    ]
    with _READING:  # the limits are those of the process
        before = [get() for get, _ in limits]
        try:
            size = regular_size(path)
            for _, limit in limits:
                limit(size)
            return faiss.read_index(os.fspath(path), flags)
        except UNREADABLE as error:
            said = " ".join(str(error).split())[-120:]
            raise IndexDamagedError(
                f"{path} cannot be read by FAISS {faiss.__version__} ({said}). Run the build command again"
            ) from error
        finally:
            for (_, limit), value in zip(limits, before, strict=True):
                limit(value)


UNREADABLE = (
    RuntimeError,
    MemoryError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    AssertionError,
)
"""What FAISS raises for files that are not as they should be."""
_READING = threading.Lock()


def _empty(faiss: ModuleType, dim: int) -> Any:  # noqa: ANN401
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def write_faiss(
    path: Path, blocks: Iterable[tuple[int, NDArray[np.float16]]], *, rows: int, dim: int
) -> None:
    """Write the flat FAISS index of ``rows`` vectors to ``path``, in constant memory.

    ``blocks`` are (id of the first row, rows of shape (n, dim), float16), in order.
    """
    faiss = import_faiss()
    # Such a file is a header (number of rows at byte 8, number of bytes at its end) and the float16 rows. FAISS itself
    # would hold all of them in memory, twice.
    header = bytearray(faiss.serialize_index(_empty(faiss, dim)).tobytes())
    header[8:16] = rows.to_bytes(8, "little")
    header[-8:] = (rows * dim * 2).to_bytes(8, "little")
    with create_new(path) as new, BufferedWriter(new) as file:
        file.write(header)
        for _, block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f2").data)
        file.flush()
        os.fsync(file.fileno())
    FaissIndex.read(path, rows=rows, dim=dim)


class FaissIndex:
    """A flat FAISS index; made by ``read``."""

    def __init__(self, index: Any) -> None:  # noqa: ANN401
        self._index = index

    @classmethod
    def read(cls, path: Path, *, rows: int, dim: int) -> Self:
        """Open a FAISS index file, mapped into memory where this FAISS can; refuse other rows and dim."""
        faiss = import_faiss()
        index = read_file(path, flags=getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
        kind = getattr(getattr(index, "sq", None), "qtype", None)
        found = (type(index).__name__, kind, index.ntotal, index.d, index.metric_type)
        fresh = _empty(faiss, dim)
        expected = (type(fresh).__name__, fresh.sq.qtype, rows, dim, fresh.metric_type)
        if found != expected or index.codes.size() != rows * dim * 2:
            raise IndexDamagedError(
                f"{path} does not fit the index: got (type, code, rows, dim, metric) {found}, expected {expected}. "
                "Run the build command again"
            )
        return cls(index)

    def rows(self, first: int, count: int) -> NDArray[np.float32]:
        """Some of its rows. Shape: (count, dim), float32."""
        found: NDArray[np.float32] = self._index.reconstruct_n(first, count)
        return found


TOGETHER = 24
"""From so many queries on, rows are decoded once for all of them and scored by matrix multiplication."""
_BLOCK = 8_192
_NONE = np.float32(-np.inf)

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and ids of each query, nearest first. Shapes: (n, count), float32 and int64; id -1: no more."""
_WIDENED = 256
"""Rows converted to float64 at once: so few that they stay in the CPU cache."""

Ranked = list[tuple[int, float]]
"""(id, score), best first, equal scores by id."""

_FEW = 64
"""Up to so many candidates, Python sorts faster than NumPy."""

SLACK = 1e-5
"""Upper bound of the error of FAISS's float32 sums of unit vectors."""


@dataclass(frozen=True)
class _Part:
    """Contiguous rows."""

    first: int
    rows: Rows
    index: Any
    """A FAISS index over the memory of ``rows``."""


@final
class ExactScan:
    """Scores every row from the id ``first`` on, in float32."""

    exact = True
    slack = SLACK

    def __init__(self, vectors: StoredVectors, *, first: int = 0) -> None:
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
        """The nearest allowed rows of each query, nearest first. Shapes: (n, dim) float32, (rows,) bool."""
        if len(queries) < TOGETHER and len(self._parts) == 1:
            return self._one_by_one(self._parts[0], queries, count, allowed)
        shape = len(queries), count
        best, ids = np.full(shape, _NONE), np.full(shape, -1, dtype=np.int64)
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
            decoded: NDArray[np.float32] = part.index.sa_decode(np.ascontiguousarray(rows).view(np.uint8))
            scores = (decoded @ flipped).T
            if len(numbers) > 4 * count:
                scores, kept = _promising(scores, best[:, -1], count)
                numbers = np.where(kept < 0, -1, numbers[kept])
            else:
                numbers = np.broadcast_to(numbers, scores.shape)
            best, ids = merged((best, ids), (scores, numbers))
        return best, ids


def selector_of(faiss: ModuleType, allowed: NDArray[np.bool_]) -> Any:  # noqa: ANN401
    """FAISS's selector of the allowed ids."""
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def merged(one: Found, other: Found) -> Found:
    """The best rows of two results, as many as the first holds."""
    count = one[0].shape[1]
    scores = np.concatenate([one[0], np.where(other[1] < 0, _NONE, other[0])], axis=1)
    ids = np.concatenate([one[1], other[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _promising(scores: NDArray[np.float32], worst: NDArray[np.float32], count: int) -> Found:
    """The best ``count`` of each row: scores and columns, -1 where no better than ``worst``."""
    columns = np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]
    kept = np.take_along_axis(scores, columns, axis=1)
    return kept, np.where(kept > worst[:, None], columns, -1)


def _over(faiss: ModuleType, rows: Rows, dim: int) -> Any:  # noqa: ANN401
    """A FAISS index over the memory of ``rows``; over a copy where this FAISS cannot use foreign memory."""
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


def _einsum(rows: NDArray[Any], queries: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum("...d,...d->...", rows.astype(np.float64), queries)
    return found


_dots: Callable[[NDArray[Any], NDArray[np.float64]], NDArray[np.float64]] = getattr(np, "vecdot", _einsum)
"""Row-wise float64 inner products: never a matrix product, whose sums depend on the number of rows. In NumPy from
2.0."""


def exact_scores(rows: Rows, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Exact score of each row with its query. Shapes: (n, dim) float16, (n, dim) or (dim,) float32 -> (n,)."""
    if len(rows) <= _WIDENED:
        return _dots(rows, queries.astype(np.float64)).astype(np.float32)
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _WIDENED):
        part = slice(start, start + _WIDENED)
        scores[part] = _dots(rows[part], (queries if queries.ndim == 1 else queries[part]).astype(np.float64))
    return scores


def rerank(
    vectors: StoredVectors, queries: NDArray[np.float32], ids: NDArray[np.int64], *, k: int
) -> list[Ranked]:
    """The best ``k`` candidates of each query by exact score, equal scores by id.

    Shapes: queries (n, dim), float32; ids (n, m), int64, each once, -1: none.
    """
    if len(queries) == 1:
        return [_rank_one(vectors, queries[0], ids[0], k=k)]
    whole = bool((there := ids >= 0).all())
    scores = np.empty(ids.shape, dtype=np.float32)
    step = max(1, _WIDENED // max(1, ids.shape[1]))
    for start in range(0, len(queries), step):
        asked, mine = queries[start : start + step], ids[start : start + step]
        rows = vectors.take((mine if whole else np.maximum(mine, 0)).ravel())
        rows = rows.reshape(*mine.shape, vectors.dim)
        scores[start : start + step] = _dots(rows, asked[:, None].astype(np.float64))
    if not whole:
        scores[~there] = -np.inf
    order = _order(scores, ids)[:, :k]
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    names: Any = ids.tolist()
    numbers: Any = scores.tolist()
    found: list[Ranked] = [list(zip(*each, strict=True)) for each in zip(names, numbers, strict=True)]
    return found if whole else [[hit for hit in hits if hit[0] >= 0] for hits in found]


def _rank_one(
    vectors: StoredVectors, query: NDArray[np.float32], ids: NDArray[np.int64], *, k: int
) -> Ranked:
    listed = ids.tolist()
    if -1 in listed:
        ids = ids[ids >= 0]
        listed = ids.tolist()
    scores = exact_scores(vectors.take(ids), query)
    if len(listed) <= _FEW:
        nearest = sorted(zip((-scores).tolist(), listed, strict=True))
        return [(id, -score) for score, id in nearest[:k]]
    best = np.lexsort((ids, -scores))[:k]
    return list(zip(ids[best].tolist(), scores[best].tolist(), strict=True))


def _order(scores: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The columns of each row by descending score, equal scores by id."""
    order = np.argsort(-scores, axis=1)
    ranked = np.take_along_axis(scores, order, axis=1)
    tied = (ranked[:, 1:] == ranked[:, :-1]).any(axis=1)
    if tied.any():
        order[tied] = np.lexsort((ids[tied], -scores[tied]), axis=1)
    return order
