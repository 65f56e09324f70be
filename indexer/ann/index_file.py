"""Opens and checks the ANN index file of an index, and decides what searches on which device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm2clip.indexer.ann.faiss_flat import FaissIndex, has_gpu, import_faiss
from llm2clip.indexer.ann.index_types import APPROXIMATE
from llm2clip.indexer.ann.nearest_neighbors import Candidates
from llm2clip.indexer.ann.plan import Plan
from llm2clip.indexer.core.errors import IndexDamagedError, IndexerError
from llm2clip.indexer.core.results import StoredVectors
from llm2clip.indexer.storage.manifest import KIND

GRAPH_ROWS = 4_000_000
"""Rows from which on a CAGRA graph is built on a GPU: of fewer, an exact scan takes a few milliseconds."""


def read_ann(
    path: Path, *, vectors: StoredVectors, rows: int, plan: Mapping[str, Any], device: str = "cpu"
) -> Candidates | None:
    """Open what proposes candidates on a device; None for an exact scan of the stored vectors on the CPU.

    A GPU is searched by FAISS where the installed wheel has a GPU, else by torch. Only IVF-SQ8, and graphs over
    millions of rows, are faster there than an exact scan. The file covers the first ``rows`` of the vectors.
    """
    if not path.exists():
        raise IndexDamagedError(
            f"{path} is missing: the index is incomplete. "
            "Try  llm2clip-index verify --repair, or run the build command again"
        )
    known = None if plan.get("kind") == KIND else _fitting(path, rows=rows, dim=vectors.dim, plan=plan)
    return open_searcher(vectors, device=device, plan=known, path=path)


def open_searcher(
    vectors: StoredVectors, *, device: str, plan: Plan | None = None, path: Path | None = None
) -> Candidates | None:
    """What proposes candidates on a device, as ``read_ann``; without a plan, an exact scan."""
    if not is_gpu(device):
        from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex

        return FaissAnnIndex.read(path, plan=plan) if plan and not plan.exact and path else None
    if not faiss_on_gpu():
        from llm2clip.indexer.ann.exact_scan_torch import TorchScan

        return TorchScan(vectors, device=device)
    from llm2clip.indexer.ann.gpu_index import GpuIndex

    if plan and path and plan.kind == "ivf-sq8":
        return GpuIndex.ivf(vectors, path, plan=plan, device=device)
    graph = plan is not None and plan.kind.startswith("hnsw") and plan.rows >= GRAPH_ROWS
    if plan and graph and hasattr(import_faiss(), "GpuIndexCagra"):
        return GpuIndex.graph(vectors, plan=plan, device=device)
    return GpuIndex.flat(vectors, device=device)


def is_gpu(device: str) -> bool:
    """Whether a device is a GPU."""
    name, _, number = device.partition(":")
    if name == "cuda" and (not number or number.isdigit()):
        return True
    if device != "cpu":
        raise IndexerError(f"the device must be cpu, cuda or cuda:NUMBER, got {device!r}")
    return False


def faiss_on_gpu() -> bool:
    """Whether the installed FAISS can search on a GPU of this machine."""
    faiss = import_faiss()
    return has_gpu(faiss) and faiss.get_num_gpus() > 0


def describe_device(device: str) -> str:
    """What searches an index on a device, as text."""
    if not is_gpu(device):
        return "cpu: FAISS"
    if faiss_on_gpu():
        return f"{device}: FAISS on the GPU"
    return f"{device}: exact search by torch, as the installed FAISS has no GPU"


def ann_problem(path: Path, vectors: StoredVectors, *, rows: int, plan: Mapping[str, Any]) -> str | None:
    """What is wrong with an ANN index file beside the vectors it was built of; None if nothing is. Reads everything."""
    if plan.get("kind") != KIND:
        from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex

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
    if plan.get("kind") not in APPROXIMATE:
        raise IndexDamagedError(
            f"{path} has a type that this release does not know: got {plan.get('kind')!r}, expected one of "
            f"{', '.join((KIND, *APPROXIMATE))}. Run  llm2clip-index compact"
        )
    known = Plan.from_json(plan)
    if (known.rows, known.dim) != (rows, dim):
        raise IndexDamagedError(
            f"{path} does not fit the index: got a plan for {known.rows:,} x {known.dim}, expected {rows:,} x {dim}. "
            "Run  llm2clip-index compact"
        )
    return known
