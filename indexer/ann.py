"""The seam to the search structure that is derived from the vectors: written by ``write_ann``, read by ``read_ann``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.errors import IndexDamagedError
from llm2clip.indexer.faiss_index import KIND, FaissIndex, import_faiss, write_faiss
from llm2clip.indexer.segments import Rows, Vectors

Blocks = Iterable[tuple[int, Rows]]
DEFAULT_PLAN: Mapping[str, Any] = {"kind": KIND}
"""Exact."""


class Candidates(Protocol):
    """Proposes rows that are near to a query; what is said about them is computed from the stored halves."""

    exact: bool
    """Whether no row that it leaves out can be nearer than those it proposes, but for rounding."""

    def candidates(
        self, queries: NDArray[np.float32], *, count: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The nearest rows of each query, nearest first.

        Args:
            queries: Shape: (n, dim), float32.
            count: how many rows to find.
            allowed: which rows may be found, all if None. Shape: (rows,), bool.

        Returns:
            scores (n, count) float32, and ids (n, count) int64, -1 where there are no more.
        """


class _Flat:
    """The exact structure: every row, as halves."""

    exact = True

    def __init__(self, index: FaissIndex) -> None:
        self._index = index

    def candidates(
        self, queries: NDArray[np.float32], *, count: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self._index.nearest(queries, count=count, allowed=allowed)


def ready(plan: Mapping[str, Any]) -> None:
    """Make sure that ``write_ann`` will work, before hours of work.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
    """
    import_faiss()


def covers_again(plan: Mapping[str, Any], *, covered: int, rows: int) -> bool:
    """Whether it is time to write the structure anew, now that ``rows - covered`` vectors are scanned beside it."""
    return rows - covered > max(20_000, covered // 4)


def write_ann(path: Path, blocks: Blocks, *, rows: int, dim: int, plan: Mapping[str, Any]) -> None:
    """Write the structure of ``rows`` vectors to ``path``.

    Args:
        path: the file to write.
        blocks: (id of the first row, rows of shape (n, dim), float16), in order.
        rows: how many there are in all.
        dim: length of the rows.
        plan: what to make.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
        OSError: the disk is full, or worse.
    """
    _known(plan, path)
    write_faiss(path, blocks, rows=rows, dim=dim)


def read_ann(path: Path, *, rows: int, dim: int, plan: Mapping[str, Any], device: str = "cpu") -> Candidates:
    """Open what ``write_ann`` wrote.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
        IndexDamagedError: the file is missing or not what was expected.
    """
    _known(plan, path)
    return _Flat(FaissIndex.read(path, rows=rows, dim=dim))


def ann_problem(path: Path, vectors: Vectors, *, rows: int, plan: Mapping[str, Any]) -> str | None:
    """What is wrong with a structure beside the vectors it was made of; None if nothing is. Reads everything.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
        IndexDamagedError: the file is missing or not what was expected.
    """
    _known(plan, path)
    derived = FaissIndex.read(path, rows=rows, dim=vectors.dim)
    for first, block in vectors.blocks():
        here = block[: max(0, rows - first)]
        if len(here) and not np.array_equal(
            derived.rows(first, len(here)), here.astype(np.float32), equal_nan=True
        ):
            return f"{path.name} has other vectors than the segments, from about id {first}"
    return None


def _known(plan: Mapping[str, Any], path: Path) -> None:
    if plan.get("kind") != KIND:
        raise IndexDamagedError(
            f"{path} is of a kind that this release does not know: got {plan.get('kind')!r}, expected {KIND!r}. "
            "Run  llm2clip-index compact"
        )
