"""ANN indexes of FAISS: trained on a random sample, filled from the segments, written, read and searched.

They only propose candidates; the stored float16 vectors re-rank them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import UNREADABLE, Found, has_gpu, import_faiss, read_file
from llm2clip.indexer.ann.index_types import effort_name
from llm2clip.indexer.ann.nearest_neighbors import post_filtered
from llm2clip.indexer.ann.plan import Plan
from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.core.results import StoredVectors
from llm2clip.indexer.storage.vector_segments import Rows

_REBUILD = "Run  llm2clip-index verify --repair"
_QUERY_BITS = 4
"""Bits per dimension that a query is quantised to for RaBitQ; fewer lose candidates."""


@final
class FaissAnnIndex:
    """An ANN index; made by ``read`` or ``build``."""

    exact = False
    slack = np.inf

    def __init__(self, index: Any, *, plan: Plan) -> None:  # noqa: ANN401
        self._faiss, self._index, self.plan = import_faiss(), index, plan
        self._core = _core(self._faiss, index)
        self.rows = int(index.ntotal)
        self.effort = plan.parameters.get(effort_name(plan.kind), 1)
        """nprobe of inverted lists, ef_search of a graph."""
        self._known_parameters: dict[tuple[int, int], Any] = {}

    @property
    def faiss_index(self) -> Any:  # noqa: ANN401
        """The FAISS index."""
        return self._index

    @property
    def max_effort(self) -> int:
        """Largest useful ``effort``."""
        return 1_024 if self.plan.kind.startswith("hnsw") else int(self._core.nlist)

    @classmethod
    def read(cls, path: Path, *, plan: Plan) -> FaissAnnIndex:
        """Open the file of an ANN index, mapped into memory where FAISS can map its type."""
        faiss = import_faiss()
        index = read_file(path, flags=_flags(faiss, plan))
        try:
            fresh = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
        except UNREADABLE as error:
            raise IndexDamagedError(
                f"the plan of the index is not one of ours: {plan.factory!r:.80}. Run  llm2clip-index compact"
            ) from error
        expected = _description(faiss, fresh, rows=plan.rows)
        found = _description(faiss, index, rows=int(index.ntotal))
        if found != expected:
            raise IndexDamagedError(
                f"{path} does not fit the index: got (types, rows, dim, nlist) {found}, expected {expected}. "
                "Run the build command again"
            )
        _disable_read_ahead(faiss, _core(faiss, index))
        return cls(index, plan=plan)

    @classmethod
    def build(
        cls,
        blocks: Iterable[tuple[int, Rows]],
        *,
        sample: NDArray[np.float32],
        plan: Plan,
        device: str = "auto",
    ) -> FaissAnnIndex:
        """Build an ANN index in memory.

        Args:
            blocks: (id of the first row, rows of shape (n, dim), float16), in order.
            sample: training rows. Shape: (m, dim), float32.
            plan: its type and parameters.
            device: where k-means runs if FAISS has a GPU: ``auto``, ``cuda``, ``cuda:1``; or ``cpu``.
        """
        faiss = import_faiss()
        index = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
        core = _core(faiss, index)
        _prepare(core, plan.parameters)
        centres = _centres(faiss, plan.dim, device=device) if hasattr(core, "clustering_index") else None
        if centres is not None:  # k-means takes most of the time
            core.clustering_index = centres
            index.train(sample)
            core.clustering_index = None
        else:
            index.train(sample)
        for _, rows in blocks:
            index.add(rows.astype(np.float32))
        return cls(index, plan=plan)

    def write(self, path: Path) -> None:
        """Write it to a file and sync that to disk."""
        try:
            self._faiss.write_index(self._index, os.fspath(path))
        except RuntimeError as error:
            raise OSError(f"FAISS cannot write {path}: {str(error).splitlines()[0]}") from error
        with open(path, "rb+") as file:
            os.fsync(file.fileno())

    def candidates(
        self, queries: NDArray[np.float32], *, count: int, allowed: NDArray[np.bool_] | None
    ) -> Found:
        """Rows that are probably near each query, nearest first by quantised scores; under a filter ``post_filtered``.

        Shapes: (n, dim) float32, (rows,) bool.
        """
        if allowed is not None:
            return post_filtered(partial(self._search, queries), count=count, allowed=allowed)
        return self._search(queries, count, 1.0)

    def _search(self, queries: NDArray[np.float32], count: int, effort: float) -> Found:
        key = round(self.effort * effort), count if self.plan.kind.startswith("hnsw") else 0
        if (params := self._known_parameters.get(key)) is None:
            self._known_parameters.clear()
            params = self._known_parameters[key] = self._parameters(key[0], count=count)
        try:
            scores, ids = self._index.search(queries, count, params=params)
        except UNREADABLE as error:
            said = " ".join(str(error).split())[-120:]
            raise IndexDamagedError(f"the ANN index is damaged ({said}). {_REBUILD}") from error
        if ids.size and not -1 <= ids.min() <= ids.max() < self.rows:
            raise IndexDamagedError(
                f"the ANN index is damaged: it names vector {ids.max()} of {self.rows:,}. {_REBUILD}"
            )
        return scores, ids

    def problem(self) -> str | None:
        """What is wrong with it; None if every id is there once."""
        lists = getattr(self._core, "invlists", None)
        if lists is None:
            return None
        seen = np.zeros(self.rows, dtype=np.uint8)
        for number in range(self._core.nlist):
            size = lists.list_size(number)
            ids = (
                self._faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, dtype=np.int64)
            )
            if len(ids) and (ids.min() < 0 or ids.max() >= self.rows):
                return f"the ANN index names id {ids.max()}, of {self.rows:,} rows"
            np.add.at(seen, ids, 1)
        missing = np.flatnonzero(seen != 1)
        return f"the ANN index does not have id {missing[0]} once" if len(missing) else None

    def depth(self, k: int) -> int:
        """Candidates to re-rank for ``k`` hits."""
        return max(k + 2, k * self.plan.parameters.get("refine", 2))

    def _parameters(self, effort: int, *, count: int) -> Any:  # noqa: ANN401
        faiss, core = self._faiss, self._core
        if self.plan.kind.startswith("hnsw"):
            params = faiss.SearchParametersHNSW()
            params.efSearch = min(max(effort, count), max(4_096, count))
        else:
            bits = self.plan.kind == "ivf-rabitq"
            params = faiss.IVFRaBitQSearchParameters() if bits else faiss.SearchParametersIVF()
            params.nprobe = min(max(effort, 1), core.nlist)
            if bits:
                params.qb = _QUERY_BITS
        if core is self._index:
            return params
        outer = faiss.SearchParametersPreTransform()
        outer.index_params = params
        outer.referenced_objects = [params]  # keep alive what FAISS points to
        return outer


def _centres(faiss: ModuleType, dim: int, *, device: str) -> Any:  # noqa: ANN401
    """The GPU index that assigns rows to centroids; None: FAISS's own, on the CPU."""
    if device == "cpu" or not has_gpu(faiss) or not faiss.get_num_gpus():
        return None
    flat, (_, _, number) = faiss.IndexFlatIP(dim), device.partition(":")
    if not number:
        return faiss.index_cpu_to_all_gpus(flat)
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), int(number), flat)


def sample_of(vectors: StoredVectors, count: int, *, rows: int, seed: int) -> NDArray[np.float32]:
    """Random rows among the first ``rows``, without replacement, by id. Shape: (up to count, dim), float32."""
    random = np.random.default_rng(seed)
    ids = np.sort(random.choice(rows, size=min(count, rows), replace=False))
    return vectors.take(ids).astype(np.float32)


def _core(faiss: ModuleType, index: Any) -> Any:  # noqa: ANN401
    """The index behind a rotation of the queries, if there is one."""
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.downcast_index(index.index)
    return index


def _prepare(core: Any, parameters: Mapping[str, int]) -> None:  # noqa: ANN401
    if hasattr(core, "cp"):
        core.cp.seed, core.cp.niter = parameters["seed"] + 1, 8
        core.cp.max_points_per_centroid = 256
    if hasattr(core, "hnsw"):
        core.hnsw.efConstruction = parameters["ef_construction"]


def _flags(faiss: ModuleType, plan: Plan) -> int:
    # Inverted lists are mapped by one flag, graphs and flat codes by the other, packed codes by neither.
    if plan.kind == "ivf-sq8":
        return int(faiss.IO_FLAG_MMAP)
    return int(getattr(faiss, "IO_FLAG_MMAP_IFC", 0)) if plan.kind.startswith("hnsw") else 0


def _disable_read_ahead(faiss: ModuleType, core: Any) -> None:  # noqa: ANN401
    """Switch off FAISS's read-ahead of mapped lists: starting its 32 threads costs more than most searches."""
    if hasattr(core, "invlists"):
        lists = faiss.downcast_InvertedLists(core.invlists)
        if hasattr(lists, "prefetch_nthread"):
            lists.prefetch_nthread = 0


def _description(faiss: ModuleType, index: Any, *, rows: int) -> tuple[str, str, int, int, int]:  # noqa: ANN401
    core = _core(faiss, index)
    return type(index).__name__, type(core).__name__, rows, int(index.d), int(getattr(core, "nlist", 0))
