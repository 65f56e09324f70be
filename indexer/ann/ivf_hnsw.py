"""Approximate structures made by FAISS: trained on a random sample, filled from the segments, written, opened, asked.

They only propose. What is said about a candidate is computed from the stored halves (``ranking.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.exact_scan import Found, selector_of
from llm2clip.indexer.ann.faiss_flat import has_gpu, import_faiss
from llm2clip.indexer.ann.plan import Plan
from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.storage.vector_segments import Rows, Vectors

_QUERY_BITS = 4
"""Bits that a query is rounded to where codes are single bits; less than that loses candidates."""


@final
class FaissAnnIndex:
    """An approximate structure; made by ``read`` or ``build``.

    Args:
        index: FAISS's.
        plan: what it is and how hard it looks.
    """

    exact = False
    slack = np.inf

    def __init__(self, index: Any, *, plan: Plan) -> None:  # noqa: ANN401
        self._faiss, self._index, self.plan = import_faiss(), index, plan
        self._core = _core(self._faiss, index)
        self.rows = int(index.ntotal)
        self.probes = plan.parameters["probes"]
        """Lists that are looked into, or breadth of the walk through a graph."""
        self._unfiltered: dict[tuple[int, int], Any] = {}

    @property
    def faiss_index(self) -> Any:  # noqa: ANN401
        """FAISS's object."""
        return self._index

    @property
    def most(self) -> int:
        """The most ``probes`` that mean anything."""
        return 1_024 if self.plan.kind.startswith("hnsw") else int(self._core.nlist)

    @classmethod
    def read(cls, path: Path, *, plan: Plan) -> FaissAnnIndex:
        """Open a structure, mapped into memory where FAISS can map that kind.

        Raises:
            FaissNotInstalledError: FAISS is not installed.
            IndexDamagedError: the file is missing or not the structure of the plan.
        """
        faiss = import_faiss()
        try:
            index = faiss.read_index(os.fspath(path), _flags(faiss, plan))
        except RuntimeError as error:
            raise IndexDamagedError(
                f"{path} cannot be read by FAISS {faiss.__version__}. Run the build command again"
            ) from error
        fresh = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
        expected = _description(faiss, fresh, rows=plan.rows)
        found = _description(faiss, index, rows=int(index.ntotal))
        if found != expected:
            raise IndexDamagedError(
                f"{path} does not fit the index: got (kinds, rows, dim, lists) {found}, expected {expected}. "
                "Run the build command again"
            )
        _read_as_needed(faiss, _core(faiss, index))
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
        """Make a structure in memory.

        Args:
            blocks: (id of the first row, rows of shape (n, dim), float16), in order.
            sample: rows it is trained on. Shape: (m, dim), float32.
            plan: what to make.
            device: where centres of lists are found, if FAISS has GPUs: ``auto``, ``cuda``, ``cuda:1``; or ``cpu``.
        """
        faiss = import_faiss()
        index = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
        core = _core(faiss, index)
        _prepare(core, plan.parameters)
        centres = _centres(faiss, plan.dim, device=device) if hasattr(core, "clustering_index") else None
        if centres is not None:  # where the time goes: distances to all centres, many times over
            core.clustering_index = centres
            index.train(sample)
            core.clustering_index = None
        else:
            index.train(sample)
        for _, rows in blocks:
            index.add(rows.astype(np.float32))
        return cls(index, plan=plan)

    def write(self, path: Path) -> None:
        """Write it to a file and flush that to the disk.

        Raises:
            OSError: the disk is full, or worse.
        """
        try:
            self._faiss.write_index(self._index, os.fspath(path))
        except RuntimeError as error:
            raise OSError(f"FAISS cannot write {path}: {str(error).splitlines()[0]}") from error
        with open(path, "rb+") as file:
            os.fsync(file.fileno())

    def candidates(
        self, queries: NDArray[np.float32], *, count: int, allowed: NDArray[np.bool_] | None
    ) -> Found:
        """Rows that are probably near to each query, nearest first by rounded scores.

        The more a filter takes away, the harder it looks: as many allowed rows are compared as without one.

        Args:
            queries: Shape: (n, dim), float32.
            count: how many rows to propose.
            allowed: which rows may be found, all if None. Shape: (rows,), bool.

        Returns:
            scores (n, count) float32, and ids (n, count) int64, -1 where there are no more.
        """
        if allowed is None:
            key = self.probes, count if self.plan.kind.startswith("hnsw") else 0
            if (params := self._unfiltered.get(key)) is None:
                self._unfiltered.clear()
                params = self._unfiltered[key] = self._parameters(self.probes, count=count, selector=None)
        else:
            share = max(int(np.count_nonzero(allowed)), 1) / len(allowed)
            selector = selector_of(self._faiss, allowed)
            params = self._parameters(round(self.probes / share), count=count, selector=selector)
        found: Found = self._index.search(queries, count, params=params)
        return found

    def problem(self) -> str | None:
        """What is wrong with it; None if nothing is: every id from 0 is there once."""
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
                return f"the search structure names id {ids.max()}, of {self.rows:,} rows"
            np.add.at(seen, ids, 1)
        missing = np.flatnonzero(seen != 1)
        return f"the search structure does not have id {missing[0]} once" if len(missing) else None

    def depth(self, k: int) -> int:
        """Candidates to rank exactly for ``k`` hits."""
        return max(k + 2, k * self.plan.parameters.get("refine", 2))

    def _parameters(self, probes: int, *, count: int, selector: Any) -> Any:  # noqa: ANN401
        faiss, core = self._faiss, self._core
        if self.plan.kind.startswith("hnsw"):
            params = faiss.SearchParametersHNSW()
            params.efSearch = min(max(probes, count), max(4_096, count))
        else:
            bits = self.plan.kind == "ivf-rabitq"
            params = faiss.IVFRaBitQSearchParameters() if bits else faiss.SearchParametersIVF()
            params.nprobe = min(max(probes, 1), core.nlist)
            if bits:
                params.qb = _QUERY_BITS
        if selector is not None:
            params.sel = selector
        if core is self._index:
            return params
        outer = faiss.SearchParametersPreTransform()
        outer.index_params = params
        return _Kept(outer, params, selector).outer


def _centres(faiss: ModuleType, dim: int, *, device: str) -> Any:  # noqa: ANN401
    """What compares rows with centres on a device; None: FAISS's own way, on the CPU."""
    if device == "cpu" or not has_gpu(faiss) or not faiss.get_num_gpus():
        return None
    flat, (_, _, number) = faiss.IndexFlatIP(dim), device.partition(":")
    if not number:
        return faiss.index_cpu_to_all_gpus(flat)
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), int(number), flat)


class _Kept:
    """FAISS's parameters do not keep what they point to."""

    def __init__(self, outer: Any, *inner: Any) -> None:  # noqa: ANN401
        outer.referenced_objects = list(inner)
        self.outer = outer


def sample_of(vectors: Vectors, count: int, *, rows: int, seed: int) -> NDArray[np.float32]:
    """Random rows among the first ``rows``, each at most once, in order. Shape: (up to count, dim), float32."""
    random = np.random.default_rng(seed)
    ids = np.sort(random.choice(rows, size=min(count, rows), replace=False))
    return vectors.take(ids).astype(np.float32)


def _core(faiss: ModuleType, index: Any) -> Any:  # noqa: ANN401
    """The index behind a rotation of the queries; itself where there is none."""
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.downcast_index(index.index)
    return index


def _prepare(core: Any, parameters: Mapping[str, int]) -> None:  # noqa: ANN401
    if hasattr(core, "cp"):
        core.cp.seed, core.cp.niter = parameters["seed"] + 1, 8
        core.cp.max_points_per_centroid = 256
    if hasattr(core, "hnsw"):
        core.hnsw.efConstruction = parameters["build_effort"]


def _flags(faiss: ModuleType, plan: Plan) -> int:
    # Plain lists are mapped by the one flag, graphs and flat codes by the other; blocks of packed codes by neither.
    if plan.kind == "ivf-sq8":
        return int(faiss.IO_FLAG_MMAP)
    return int(getattr(faiss, "IO_FLAG_MMAP_IFC", 0)) if plan.kind.startswith("hnsw") else 0


def _read_as_needed(faiss: ModuleType, core: Any) -> None:  # noqa: ANN401
    """Mapped lists are read by the search itself: starting 32 threads to read ahead costs more than most searches."""
    if hasattr(core, "invlists"):
        lists = faiss.downcast_InvertedLists(core.invlists)
        if hasattr(lists, "prefetch_nthread"):
            lists.prefetch_nthread = 0


def _description(faiss: ModuleType, index: Any, *, rows: int) -> tuple[str, str, int, int, int]:  # noqa: ANN401
    core = _core(faiss, index)
    return type(index).__name__, type(core).__name__, rows, int(index.d), int(getattr(core, "nlist", 0))
