"""ANN indexes measured the same way: ours, bare FAISS of the same type, usearch, and what autofaiss chooses.

Each is asked the same held-out queries, one at a time and many at once. A point of a curve is one value of nprobe or
ef_search; recall@10 is counted against an exact search of the stored float16 vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import ExactScan, import_faiss
from llm2clip.indexer.ann.index_types import effort_name, plan_for
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.ann.plan import Budget, IndexType
from llm2clip.indexer.planner.plan_index import write_ann
from llm2clip.indexer.planner.tune import sample_queries, tune
from llm2clip.indexer.storage.vector_segments import Vectors

faiss: Any = import_faiss()
K = 10
TARGETS = (0.9, 0.95, 0.98, 0.99)
Ids = NDArray[np.int64]
Ask = Callable[[NDArray[np.float32]], Ids]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of one engine."""

    engine: str
    """Whose."""
    kind: str
    """Type of ANN index."""
    effort: str
    """Its search parameters."""
    recall: float
    """Recall@10."""
    single_ms: float
    """Milliseconds of a query, asked one at a time by one thread: the median."""
    p95_ms: float
    """Milliseconds within which 95 of 100 of them were answered."""
    batch_qps: float
    """Queries a second, all asked at once, with all threads."""
    batch_cpu_ms: float
    """Processor milliseconds of a query, all asked at once, of all threads: a busy machine changes it little."""
    bytes: int
    """Its file, or what it holds in memory."""
    build_s: float
    """Seconds it took to make."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of an engine."""

    vectors: Vectors
    """The rows."""
    queries: NDArray[np.float32]
    """What is measured with. Shape: (n, dim), float32."""
    tuning: NDArray[np.float32]
    """What parameters are found with. Shape: (m, dim), float32."""
    truth: Ids
    """The true ten of each of ``queries``. Shape: (n, 10)."""
    work: Path
    """Folder for files."""
    threads: int
    """Threads for building and for batches."""

    def recall(self, ids: Ids) -> float:
        """Recall@10."""
        return float((self.truth[:, :, None] == ids[:, None, :]).any(axis=2).mean())


def truth_of(vectors: Vectors, queries: NDArray[np.float32]) -> Ids:
    """The true ten of each query, by an exact search."""
    return ExactScan(vectors).candidates(queries, count=K, allowed=None)[1]


def times(asks: list[Ask], queries: NDArray[np.float32], *, turns: int) -> list[NDArray[np.float64]]:
    """Milliseconds of each query for each of several, asked in turns so that a busy machine slows all alike.

    The best of ``turns`` times is kept for each query.
    """
    took = np.full((len(asks), turns, len(queries)), np.inf)
    for turn in range(turns):
        for number in range(len(queries)):
            for which, ask in enumerate(asks):
                began = perf_counter()
                ask(queries[number : number + 1])
                took[which, turn, number] = (perf_counter() - began) * 1e3
    return list(took.min(axis=1))


def batched(asks: list[Ask], queries: NDArray[np.float32], *, turns: int = 5) -> list[tuple[float, float]]:
    """Queries a second, and processor milliseconds of one, of each of several, all at once, the best of some turns."""
    took: list[list[tuple[float, float]]] = [[] for _ in asks]
    for _ in range(turns):
        for which, ask in enumerate(asks):
            began, worked = perf_counter(), process_time()
            ask(queries)
            took[which].append((perf_counter() - began, process_time() - worked))
    best = [tuple(map(min, zip(*each, strict=True))) for each in took]
    return [(len(queries) / wall, worked / len(queries) * 1e3) for wall, worked in best]


def points(
    task: Task,
    asks: dict[tuple[str, str, str], Ask],
    *,
    bytes: int,
    build_s: float,
    singles: int = 200,
    turns: int = 3,
) -> list[Point]:
    """Measure several engines beside each other; keys are (engine, kind, effort)."""
    calls = list(asks.values())
    found = [task.recall(ask(task.queries)) for ask in calls]
    faiss.omp_set_num_threads(1)
    single = times(calls, task.queries[:singles], turns=turns)
    faiss.omp_set_num_threads(task.threads)
    batch = batched(calls, task.queries)
    return [
        Point(
            engine=engine,
            kind=kind,
            effort=effort,
            recall=round(found[n], 4),
            single_ms=round(float(np.median(single[n])), 4),
            p95_ms=round(float(np.percentile(single[n], 95)), 4),
            batch_qps=round(batch[n][0], 1),
            batch_cpu_ms=round(batch[n][1], 4),
            bytes=bytes,
            build_s=round(build_s, 1),
        )
        for n, (engine, kind, effort) in enumerate(asks)
    ]


def _ids(neighbours: KnnSearcher) -> Ask:
    def ask(queries: NDArray[np.float32]) -> Ids:
        found = np.full((len(queries), K), -1, dtype=np.int64)
        for number, hits in enumerate(neighbours.search(queries, k=K)):
            found[number, : len(hits)] = [id for id, _ in hits]
        return found

    return ask


def exact(task: Task) -> list[Point]:
    """The exact scan beside bare FAISS over the same float16 vectors in memory."""
    bare = faiss.IndexScalarQuantizer(
        task.vectors.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    for _, rows in task.vectors.blocks():
        bare.add(rows.astype(np.float32))
    size = len(task.vectors) * task.vectors.dim * 2
    many, few = (64, 40) if len(task.vectors) > 200_000 else (256, 100)
    task = replace(task, queries=task.queries[:many], truth=task.truth[:many])
    asks: dict[tuple[str, str, str], Ask] = {
        ("ours", "flat-fp16", "all"): _ids(KnnSearcher(task.vectors)),
        ("FAISS", "flat-fp16", "all"): lambda queries: bare.search(queries, K)[1],
    }
    return points(task, asks, bytes=size, build_s=0.0, singles=few, turns=4)


def ours(task: Task, kind: IndexType, *, path: Path | None = None, build_s: float = 0.0) -> Iterator[Point]:
    """One of our ANN indexes at several recalls, beside bare FAISS with the same parameters."""
    rows, dim = len(task.vectors), task.vectors.dim
    plan = plan_for(kind, rows=rows, dim=dim, budget=Budget())
    if path is None:
        path = task.work / f"{kind}.faiss"
        began = perf_counter()
        write_ann(path, task.vectors, plan=plan)
        build_s = perf_counter() - began
    index = FaissAnnIndex.read(path, plan=plan)
    bare = faiss.read_index(str(path))
    asked = sample_queries(task.vectors, task.tuning)
    for target in TARGETS:
        found = tune(index, task.vectors, asked, recall=target)
        tuned = replace(plan, parameters={**plan.parameters, **found})
        ann = FaissAnnIndex.read(path, plan=tuned)
        effort = ", ".join(f"{name} {value}" for name, value in found.items())
        params = _bare_parameters(kind, found[effort_name(kind)], k=K)
        asks: dict[tuple[str, str, str], Ask] = {
            ("ours", kind, effort): _ids(KnnSearcher(task.vectors, candidates=ann)),
            ("FAISS", kind, effort): partial(_bare, bare, params),
        }
        yield from points(task, asks, bytes=path.stat().st_size, build_s=build_s)


def _bare(index: Any, params: Any, queries: NDArray[np.float32]) -> Ids:  # noqa: ANN401
    ids: Ids = index.search(queries, K, params=params)[1]
    return ids


def _bare_parameters(kind: IndexType, effort: int, *, k: int) -> Any:  # noqa: ANN401
    if kind.startswith("hnsw"):
        return faiss.SearchParametersHNSW(efSearch=max(effort, k))
    if kind != "ivf-rabitq":
        return faiss.SearchParametersIVF(nprobe=effort)
    inner = faiss.IVFRaBitQSearchParameters()
    inner.nprobe, inner.qb = effort, 4
    return faiss.SearchParametersPreTransform(index_params=inner)


def usearch(task: Task, dtype: str) -> Iterator[Point]:
    """usearch's graph over half-precision or eight-bit vectors, with its own defaults but for the search's breadth."""
    index = import_module("usearch.index").Index(ndim=task.vectors.dim, metric="ip", dtype=dtype)
    began = perf_counter()
    for first, rows in task.vectors.blocks():
        index.add(np.arange(first, first + len(rows)), rows.astype(np.float32), threads=task.threads)
    built = perf_counter() - began

    def ask(queries: NDArray[np.float32]) -> Ids:
        threads = task.threads if len(queries) > 1 else 1
        keys = index.search(queries, K, threads=threads).keys
        return np.asarray(keys, dtype=np.int64).reshape(len(queries), K)

    for breadth in (16, 32, 64, 128, 256, 512, 1024):
        index.expansion_search = breadth
        [point] = points(
            task,
            {("usearch", f"hnsw-{dtype}", f"breadth {breadth}"): ask},
            bytes=int(index.serialized_length),
            build_s=built,
        )
        yield point
        if point.recall >= 0.995:
            break


def autofaiss(task: Task, *, memory: int) -> Iterator[Point]:
    """The index that autofaiss chooses for so many bytes, at several search efforts.

    It is asked what to make and what to train it with; FAISS makes it, as autofaiss 2.18's own making passes FAISS an
    argument by a name that FAISS 1.15 no longer takes, and then measures for minutes.
    """
    choosing: Any = import_module("autofaiss.external.optimize")
    count, dim = len(task.vectors), task.vectors.dim
    name = choosing.get_optimal_index_keys_v2(count, dim, f"{memory}B")[0]
    rows = np.concatenate([rows for _, rows in task.vectors.blocks()]).astype(np.float32)
    index = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
    began = perf_counter()
    if not name.startswith("HNSW"):
        index.train(rows[: choosing.get_optimal_train_size(count, name, "12GB", dim)])
    index.add(rows)
    built = perf_counter() - began
    del rows
    path = task.work / "autofaiss.faiss"
    faiss.write_index(index, str(path))
    space = faiss.ParameterSpace()
    graph = name.startswith("HNSW")
    for effort in (8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        try:
            space.set_index_parameters(index, f"{'efSearch' if graph else 'nprobe'}={effort}")
        except RuntimeError:
            effort = 0
        [point] = points(
            task,
            {("autofaiss", name, f"effort {effort}"): lambda queries: index.search(queries, K)[1]},
            bytes=path.stat().st_size,
            build_s=built,
        )
        yield point
        if point.recall >= 0.995 or not effort or point.single_ms > 100:
            break
