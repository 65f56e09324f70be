"""FAISS indexes on a GPU: a flat scan, inverted lists copied from the CPU, or a CAGRA graph.

The stored float16 vectors are copied to the GPU once, when an index is opened.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import ExactScan, Found, import_faiss
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex
from llm2clip.indexer.ann.nearest_neighbors import post_filtered
from llm2clip.indexer.ann.plan import Plan
from llm2clip.indexer.core.results import StoredVectors

_MIN_ITOPK = 256
"""Smallest itopk of a CAGRA search."""
_MAX_GRAPH_COUNT = 512
_MAX_COUNT = 2_048
"""Largest count and nprobe of FAISS on a GPU."""


@final
class GpuIndex:
    """A FAISS index on a GPU; made by ``flat``, ``ivf`` or ``graph``.

    Filters are applied to what it returns; where too few of that are allowed, an exact scan on the CPU answers.
    """

    def __init__(self, index: Any, vectors: StoredVectors, *, plan: Plan | None) -> None:  # noqa: ANN401
        self._faiss, self._index, self._scan = import_faiss(), index, ExactScan(vectors)
        self._plan = plan
        self.rows = int(index.ntotal)
        self.exact = plan is None
        self.slack = 2e-3  # queries are rounded to float16 too

    @classmethod
    def flat(cls, vectors: StoredVectors, *, device: str) -> GpuIndex:
        """A flat scan of all rows, as float16."""
        faiss = import_faiss()
        options = faiss.GpuIndexFlatConfig()
        options.useFloat16, options.device = True, _number(device)
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), vectors.dim, options)
        for _, rows in vectors.blocks():
            index.add(rows.astype(np.float32))
        return cls(index, vectors, plan=None)

    @classmethod
    def ivf(cls, vectors: StoredVectors, path: Path, *, plan: Plan, device: str) -> GpuIndex:
        """The inverted lists of the file of an ANN index."""
        faiss = import_faiss()
        options = faiss.GpuClonerOptions()
        options.useFloat16 = True
        there = FaissAnnIndex.read(path, plan=plan).faiss_index
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), _number(device), there, options)
        return cls(index, vectors, plan=plan)

    @classmethod
    def graph(cls, vectors: StoredVectors, *, plan: Plan, device: str) -> GpuIndex:
        """A CAGRA graph over the rows of a plan, built now; takes 4 bytes per dimension on CPU and GPU."""
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
        """Candidates to re-rank for ``k`` hits."""
        return max(k + 8, k * self._plan.parameters.get("refine", 1)) if self._plan else k + 8

    def candidates(
        self, queries: NDArray[np.float32], *, count: int, allowed: NDArray[np.bool_] | None
    ) -> Found:
        """The nearest rows of each query: scores (n, count) float32, ids (n, count) int64, -1: no more."""
        if allowed is None:
            return self._ask(queries, count, 1.0)
        scores, ids = post_filtered(partial(self._ask, queries), count=count, allowed=allowed)
        if self.exact and ids.shape[1] < count:
            return self._scan.candidates(queries, count=count, allowed=allowed)
        if self.exact and len(short := np.flatnonzero(ids[:, -1] < 0)):
            scores[short], ids[short] = self._scan.candidates(queries[short], count=count, allowed=allowed)
        return scores, ids

    def _ask(self, queries: NDArray[np.float32], count: int, effort: float) -> Found:
        count = min(count, self.rows, _MAX_COUNT)
        if self._plan is None:
            flat: Found = self._index.search(queries, count)
            return flat
        if self._plan.kind.startswith("hnsw"):
            return self._walk(queries, min(count, _MAX_GRAPH_COUNT))
        params = self._faiss.SearchParametersIVF()
        nprobe = round(self._plan.parameters["nprobe"] * effort)
        params.nprobe = min(nprobe, self._plan.parameters["nlist"], _MAX_COUNT)
        found: Found = self._index.search(queries, count, params=params)
        return found

    def _walk(self, queries: NDArray[np.float32], count: int) -> Found:
        params = self._faiss.SearchParametersCagra()
        params.itopk_size = -(-max(_MIN_ITOPK, count) // 32) * 32
        scores, ids = self._index.search(queries, count, params=params)
        return scores, np.where((ids >= 0) & (ids < self.rows), ids, -1)


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)
