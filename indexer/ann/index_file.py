"""The seam to the search structure that is derived from the vectors: written by ``write_ann``, read by ``read_ann``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm2clip.indexer.ann.device_search import open_searcher
from llm2clip.indexer.ann.faiss_flat import FaissIndex, import_faiss
from llm2clip.indexer.ann.index_types import APPROXIMATE
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex
from llm2clip.indexer.ann.nearest_neighbors import Candidates
from llm2clip.indexer.ann.plan import Plan
from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.storage.manifest import KIND
from llm2clip.indexer.storage.vector_segments import Vectors


def ready(plan: Mapping[str, Any]) -> None:
    """Make sure that ``write_ann`` will work, before hours of work.

    Raises:
        FaissNotInstalledError: FAISS is not installed.
    """
    import_faiss()


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
        return open_searcher(vectors, device=device)
    return open_searcher(
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
        return FaissAnnIndex.read(path, plan=known).problem()
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
