"""What searches on which device: FAISS on a GPU where the wheel has it, else torch; the same answers either way.

The stored halves are copied to the GPU once, when an index is opened. Lists are copied where FAISS has them for GPUs;
of millions of rows that were planned as a graph, one of the GPU's kind (CAGRA) is made where FAISS has it. All else
is searched exhaustively there, which needs no tuning and is faster than a CPU's structures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.exact_scan import ExactScan, Found
from llm2clip.indexer.ann.exact_scan_torch import TorchScan
from llm2clip.indexer.ann.faiss_flat import has_gpu, import_faiss
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex
from llm2clip.indexer.ann.nearest_neighbors import Candidates
from llm2clip.indexer.ann.plan import Plan
from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.storage.vector_segments import Vectors

ON_GPU = ("ivf-sq8",)
"""Kinds of structures that FAISS can copy to a GPU as they are."""
GRAPHS = ("hnsw-sq8", "hnsw-fp16")
"""Kinds that become a graph of the GPU's own."""
GRAPH_ROWS = 4_000_000
"""Of fewer rows the exhaustive search takes a GPU no more than a few milliseconds."""
_BREADTH = 256
"""Rows that a walk through the graph keeps, at least."""
_MOST_OF_GRAPH = 512
_MOST = 2_048
"""Rows and lists that FAISS takes at once on a GPU."""


def is_gpu(device: str) -> bool:
    """Whether a device is a GPU.

    Raises:
        IndexerError: it is neither ``cpu`` nor ``cuda`` nor ``cuda:NUMBER``.
    """
    name, _, number = device.partition(":")
    if name == "cuda" and (not number or number.isdigit()):
        return True
    if device != "cpu":
        raise IndexerError(f"the device must be cpu, cuda or cuda:NUMBER, got {device!r}")
    return False


def faiss_on_gpu() -> bool:
    """Whether the installed FAISS can search on a GPU that is there."""
    faiss = import_faiss()
    return has_gpu(faiss) and faiss.get_num_gpus() > 0


def open_searcher(
    vectors: Vectors, *, device: str, plan: Plan | None = None, path: Path | None = None
) -> Candidates | None:
    """What proposes rows on a device; None where the stored halves are scanned where they lie.

    Args:
        vectors: all rows of the index.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        plan: the plan of the structure over the first of them, None if there is none.
        path: its file.

    Raises:
        IndexerError: there is no such device, or too little memory on it.
        IndexDamagedError: the structure's file is not what was expected.
    """
    if not is_gpu(device):
        return FaissAnnIndex.read(path, plan=plan) if plan and plan.file and path else None
    if not faiss_on_gpu():
        return TorchScan(vectors, device=device)
    if plan and path and plan.kind in ON_GPU:
        return GpuIndex.lists(vectors, path, plan=plan, device=device)
    if plan and plan.kind in GRAPHS and plan.rows >= GRAPH_ROWS and hasattr(import_faiss(), "GpuIndexCagra"):
        return GpuIndex.graph(vectors, plan=plan, device=device)
    return GpuIndex.flat(vectors, device=device)


def describe_device(device: str) -> str:
    """How an index is searched on a device, for people."""
    if not is_gpu(device):
        return "cpu: FAISS"
    if faiss_on_gpu():
        return f"{device}: FAISS on the GPU"
    return f"{device}: exact search by torch, as the installed FAISS has no GPU"


@final
class GpuIndex:
    """A FAISS index on a GPU; made by ``flat``, ``lists`` or ``graph``.

    FAISS has no filters there: more rows are asked for and those that are not allowed dropped. Queries for which too
    few are left are answered by the scan of the stored halves.
    """

    def __init__(self, index: Any, vectors: Vectors, *, plan: Plan | None) -> None:  # noqa: ANN401
        self._faiss, self._index, self._scan = import_faiss(), index, ExactScan(vectors)
        self._plan = plan
        self.rows = int(index.ntotal)
        self.exact = plan is None
        self.slack = 2e-3  # queries are rounded to halves too

    @classmethod
    def flat(cls, vectors: Vectors, *, device: str) -> GpuIndex:
        """Every row, as halves, in the GPU's memory."""
        faiss = import_faiss()
        options = faiss.GpuIndexFlatConfig()
        options.useFloat16, options.device = True, _number(device)
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), vectors.dim, options)
        for _, rows in vectors.blocks():
            index.add(rows.astype(np.float32))
        return cls(index, vectors, plan=None)

    @classmethod
    def lists(cls, vectors: Vectors, path: Path, *, plan: Plan, device: str) -> GpuIndex:
        """The lists of a structure's file, copied into the GPU's memory."""
        faiss = import_faiss()
        options = faiss.GpuClonerOptions()
        options.useFloat16 = True
        there = FaissAnnIndex.read(path, plan=plan).faiss_index
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), _number(device), there, options)
        return cls(index, vectors, plan=plan)

    @classmethod
    def graph(cls, vectors: Vectors, *, plan: Plan, device: str) -> GpuIndex:
        """A CAGRA graph over the rows that a plan covers, made now; wants 4 bytes a number here and there."""
        faiss = import_faiss()
        options = faiss.GpuIndexCagraConfig()
        options.device = _number(device)
        index = faiss.GpuIndexCagra(
            faiss.StandardGpuResources(), vectors.dim, faiss.METRIC_INNER_PRODUCT, options
        )
        rows = np.empty((plan.rows, vectors.dim), dtype=np.float32)
        for first, block in vectors.blocks():
            rows[first : first + len(block)] = block[: max(0, plan.rows - first)]
        index.train(rows)
        return cls(index, vectors, plan=plan)

    def depth(self, k: int) -> int:
        """Rows to propose for ``k`` hits."""
        return max(k + 8, k * self._plan.parameters.get("refine", 1)) if self._plan else k + 8

    def candidates(
        self, queries: NDArray[np.float32], *, count: int, allowed: NDArray[np.bool_] | None
    ) -> Found:
        """The nearest rows of each query: scores (n, count) float32, ids (n, count) int64, -1: no more."""
        if allowed is None:
            return self._ask(queries, count, share=1.0)
        share = max(int(np.count_nonzero(allowed)), 1) / len(allowed)
        scores, ids = self._ask(queries, round(1.5 * count / share) + 32, share=share)
        scores, ids = np.where((ids >= 0) & allowed[ids], scores, -np.inf), np.where(allowed[ids], ids, -1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
        short = (
            np.isneginf(scores).any(axis=1) if ids.shape[1] == count else np.ones(len(ids), dtype=np.bool_)
        )
        if short.any():
            full = np.full((len(queries), count), -np.inf, dtype=np.float32)
            whole = np.full((len(queries), count), -1, dtype=np.int64)
            full[~short], whole[~short] = scores[~short], ids[~short]
            full[short], whole[short] = self._scan.candidates(queries[short], count=count, allowed=allowed)
            return full, whole
        return scores.astype(np.float32), ids

    def _ask(self, queries: NDArray[np.float32], count: int, *, share: float) -> Found:
        count = min(count, self.rows, _MOST)
        if self._plan is None:
            flat: Found = self._index.search(queries, count)
            return flat
        if self._plan.kind in GRAPHS:
            return self._walk(queries, min(count, _MOST_OF_GRAPH))
        params = self._faiss.SearchParametersIVF()
        params.nprobe = min(
            round(self._plan.parameters["probes"] / share), self._plan.parameters["lists"], _MOST
        )
        found: Found = self._index.search(queries, count, params=params)
        return found

    def _walk(self, queries: NDArray[np.float32], count: int) -> Found:
        params = self._faiss.SearchParametersCagra()
        params.itopk_size = -(-max(_BREADTH, count) // 32) * 32
        scores, ids = self._index.search(queries, count, params=params)
        return scores, np.where((ids >= 0) & (ids < self.rows), ids, -1)


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)
