"""The seam to the search structure that is derived from the vectors: written by ``write_ann``, read by ``read_ann``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.approximate import ApproximateIndex
from llm2clip.indexer.errors import IndexDamagedError
from llm2clip.indexer.faiss_index import KIND, FaissIndex, import_faiss, write_faiss
from llm2clip.indexer.kinds import APPROXIMATE
from llm2clip.indexer.neighbours import Candidates
from llm2clip.indexer.placing import placed
from llm2clip.indexer.plan import Plan
from llm2clip.indexer.segments import Vectors

DEFAULT_PLAN: Mapping[str, Any] = {"kind": KIND}
"""Exact."""


def ready(plan: Mapping[str, Any]) -> None:
    """Make sure that ``write_ann`` will work, before hours of work.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
    """
    import_faiss()


def covers_again(plan: Mapping[str, Any], *, covered: int, rows: int) -> bool:
    """Whether it is time to write the structure anew, now that ``rows - covered`` vectors are scanned beside it."""
    return rows - covered > max(20_000, covered // 4)


def write_ann(
    path: Path, vectors: Vectors, *, plan: Mapping[str, Any], queries: NDArray[np.float32] | None = None
) -> Mapping[str, Any]:
    """Write the structure of all ``vectors`` to ``path``.

    Args:
        path: the file to write.
        vectors: the stored rows.
        plan: what to make.
        queries: text queries to tune it with, None if there are none. Shape: (n, dim), float32, unit rows.

    Returns:
        The plan as it is to be kept: with what was found and measured.

    Raises:
        BudgetError: it would not fit into the memory that is free now.
        FaissNotInstalledError: FAISS is not installed.
        OSError: the disk is full, or worse.
    """
    if plan.get("kind") == KIND:
        write_faiss(path, vectors.blocks(), rows=len(vectors), dim=vectors.dim)
        return plan
    from llm2clip.indexer.planner import make_ann, renewed

    return make_ann(
        path, vectors, plan=renewed(_known(plan, path), rows=len(vectors)), queries=queries
    ).to_json()


def read_ann(
    path: Path, *, vectors: Vectors, rows: int, plan: Mapping[str, Any], device: str = "cpu"
) -> Candidates | None:
    """Open what ``write_ann`` wrote; None where the stored halves themselves are to be scanned, which is exact.

    Args:
        path: the file.
        vectors: all rows of the index.
        rows: how many of them it covers.
        plan: what it is.
        device: ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
        IndexDamagedError: the file is missing or not what was expected.
        IndexerError: there is no such device.
    """
    if not path.exists():
        raise IndexDamagedError(
            f"{path} is missing: the index is not whole. "
            "Try  llm2clip-index verify --repair, or run the build command again"
        )
    if plan.get("kind") == KIND:
        return placed(vectors, device=device)
    return placed(
        vectors, device=device, plan=_fitting(path, rows=rows, dim=vectors.dim, plan=plan), path=path
    )


def ann_problem(path: Path, vectors: Vectors, *, rows: int, plan: Mapping[str, Any]) -> str | None:
    """What is wrong with a structure beside the vectors it was made of; None if nothing is. Reads everything.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
        IndexDamagedError: the file is missing or not what was expected.
    """
    if plan.get("kind") != KIND:
        known = _fitting(path, rows=rows, dim=vectors.dim, plan=plan)
        return ApproximateIndex.read(path, plan=known).problem()
    derived = FaissIndex.read(path, rows=rows, dim=vectors.dim)
    for first, block in vectors.blocks():
        here = block[: max(0, rows - first)]
        if len(here) and not np.array_equal(
            derived.rows(first, len(here)), here.astype(np.float32), equal_nan=True
        ):
            return f"{path.name} has other vectors than the segments, from about id {first}"
    return None


def _fitting(path: Path, *, rows: int, dim: int, plan: Mapping[str, Any]) -> Plan:
    known = _known(plan, path)
    if (known.rows, known.dim) != (rows, dim):
        raise IndexDamagedError(
            f"{path} does not fit the index: got a plan for {known.rows:,} x {known.dim}, expected {rows:,} x {dim}. "
            "Run  llm2clip-index compact"
        )
    return known


def _known(plan: Mapping[str, Any], path: Path) -> Plan:
    if plan.get("kind") not in APPROXIMATE:
        raise IndexDamagedError(
            f"{path} is of a kind that this release does not know: got {plan.get('kind')!r}, expected one of "
            f"{', '.join((KIND, *APPROXIMATE))}. Run  llm2clip-index compact"
        )
    return Plan.from_json(plan)
