"""Tunes nprobe, ef_search and refine of an ANN index on held-out queries, and measures it on others.

Text queries are out of distribution for an index of images: their neighbours lie in many inverted lists. Where there
are none, means of three random images stand in: on CLIP vectors they need the same nprobe as captions, while images as
their own queries need an eighth of it (docs/scaling.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import ExactScan, rerank
from llm2clip.indexer.ann.index_types import effort_name
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.ann.plan import Cost
from llm2clip.indexer.core.results import StoredVectors

K = 10
"""Tuning and measuring use recall@10."""
REFINES = (1, 2, 4, 8, 16, 32, 64)
"""Candidates per hit that are tried for re-ranking."""
_QUERIES = 400
_MARGIN = 0.1
"""Share of the missing recall to reach beyond the target, since other queries differ from these."""
_MIXED = 3
"""Images per stand-in for a text query."""
_STEP = 1.5


@dataclass(frozen=True, kw_only=True)
class TuningQueries:
    """Held-out queries and their ground truth."""

    kind: str
    queries: NDArray[np.float32]
    """Shape: (n, dim), float32, unit rows."""
    truth: NDArray[np.int64]
    """Ids of the exact nearest neighbours. Shape: (n, up to K)."""

    def half(self, which: int) -> TuningQueries:
        """Every other query: 0 for tuning, 1 for measuring."""
        part = slice(which, None, 2) if len(self.queries) > 1 else slice(None)
        return TuningQueries(kind=self.kind, queries=self.queries[part], truth=self.truth[part])

    def recall(self, ids: NDArray[np.int64]) -> float:
        """Share of the ground truth among ``ids``. Shape: (n, m), int64, -1: none."""
        found = (self.truth[:, :, None] == ids[:, None, :]).any(axis=2)
        return float(found.mean())


def sample_queries(
    vectors: StoredVectors, queries: NDArray[np.float32] | None, *, seed: int = 0
) -> TuningQueries:
    """Queries to tune and measure with, and their ground truth by an exact search.

    ``queries`` are text queries, or None. Shape: (n, dim), float32, unit rows.
    """
    random = np.random.default_rng([seed, len(vectors)])
    if queries is not None and len(queries) >= 2:
        chosen = random.permutation(len(queries))[: 2 * _QUERIES]
        asked, kind = queries[chosen].astype(np.float32), f"{len(chosen):,} text queries"
    else:
        mixed = random.integers(0, len(vectors), (2 * _QUERIES, _MIXED))
        asked = vectors.take(mixed.ravel()).astype(np.float32).reshape(*mixed.shape, -1).mean(axis=1)
        lengths = np.linalg.norm(asked, axis=1, keepdims=True)
        asked = asked[lengths[:, 0] > 0] / lengths[lengths[:, 0] > 0]
        kind = (
            f"{len(asked):,} stand-in queries, each the mean of {_MIXED} image vectors: there are no captions"
        )
    asked = np.ascontiguousarray(asked)
    _, truth = ExactScan(vectors).candidates(asked, count=min(K, len(vectors)), allowed=None)
    return TuningQueries(kind=kind, queries=asked, truth=truth)


def tune(
    index: FaissAnnIndex, vectors: StoredVectors, asked: TuningQueries, *, recall: float
) -> dict[str, int]:
    """The fastest nprobe or ef_search, and refine, that reach a recall, else those with the highest.

    Sets ``index.effort`` too.
    """
    goal = recall + (1 - recall) * _MARGIN
    graph = index.plan.kind.startswith("hnsw")
    # More candidates of a graph mean a larger ef_search; of inverted lists they come from the same lists.
    refines = tuple(refine for refine in ((2,) if graph else REFINES) if refine * K <= index.rows) or (1,)
    some = np.random.default_rng(0).choice(len(vectors), size=min(256, len(vectors)), replace=False)[None]
    per_row = min(_seconds(lambda query: rerank(vectors, query, some, k=K), asked.queries[:6])) / 256
    best: tuple[float, float, int, int] | None = None
    effort = 2 * K if graph else 1
    while True:
        index.effort = effort
        _, ids = index.candidates(asked.queries, count=refines[-1] * K, allowed=None)
        recalls = [asked.recall(ids[:, : refine * K]) for refine in refines]
        enough = next((number for number, found in enumerate(recalls) if found >= goal), None)
        number = enough if enough is not None else int(np.argmax(recalls))
        count = refines[number] * K
        single = _seconds(partial(index.candidates, count=count, allowed=None), asked.queries[:32])
        took = float(np.median(single)) + per_row * count
        found = (-min(recalls[number], goal), took, effort, refines[number])
        best = found if best is None else min(best, found)
        done = enough is not None and (number == 0 or took > 1.3 * best[1])
        if done or effort >= index.max_effort:
            break
        effort = min(index.max_effort, max(effort + 1, round(effort * _STEP)))
    index.effort = best[2]
    return {effort_name(index.plan.kind): best[2], "refine": best[3]}


def _seconds(call: Callable[[NDArray[np.float32]], object], queries: NDArray[np.float32]) -> list[float]:
    """How long a call takes with each query alone. Shape: (n, dim)."""
    took = []
    for query in queries:
        began = perf_counter()
        call(query[None])
        took.append(perf_counter() - began)
    return took


def measure(search: KnnSearcher, asked: TuningQueries, *, cost: Cost) -> Cost:
    """A cost with the recall@10 and latency of one query at a time; the lower of two latencies each."""
    found = np.full((len(asked.queries), K), -1, dtype=np.int64)
    took = np.empty((2, len(asked.queries)))
    for turn in range(2):
        for number, query in enumerate(asked.queries):
            began = perf_counter()
            [hits] = search.search(query[None], k=K)
            took[turn, number] = (perf_counter() - began) * 1e3
            found[number, : len(hits)] = [id for id, _ in hits]
    p50, p95 = (round(float(each), 4) for each in np.percentile(took.min(axis=0), [50, 95]))
    return replace(cost, recall=round(asked.recall(found), 4), p50_ms=p50, p95_ms=p95)


def exact_latency(vectors: StoredVectors, queries: NDArray[np.float32], *, rows: int) -> float:
    """Median milliseconds of an exact search, extrapolated to ``rows`` from those of ``vectors``."""
    search = partial(KnnSearcher(vectors).search, k=K)
    search(queries[:1])  # the first call also imports and starts threads
    return float(np.median(_seconds(search, queries[:40]))) * 1e3 * rows / len(vectors)
