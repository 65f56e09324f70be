"""Recall@10 and latency under filters, for each type of ANN index; and the time of filters themselves.

Filters of each selectivity are of two layouts: rows drawn at random, and rows that lie together (the nearest to one
row), which is harder: most queries lie far from them.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.index_data import synthetic
from benchmarks.measuring import Row, Settings, percentile
from llm2clip.indexer.ann import nearest_neighbors
from llm2clip.indexer.ann.index_types import plan_for
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.ann.plan import Budget, IndexType
from llm2clip.indexer.filters.compile import compile_where
from llm2clip.indexer.filters.sandbox import guard
from llm2clip.indexer.planner.plan_index import make_ann
from llm2clip.indexer.storage.items_file import connect
from llm2clip.indexer.storage.items_schema import SCHEMA
from llm2clip.indexer.storage.vector_segments import Vectors

SHARES = (0.001, 0.01, 0.1, 0.5)
KINDS: tuple[IndexType, ...] = ("ivf-sq8", "hnsw-sq8", "ivf-rabitq")
AIM = 0.95
K = 10


class Way(StrEnum):
    """How a search under a filter is answered."""

    RULE = "by the rule"
    """As an index does."""
    ANN = "by the ANN index"
    """By the ANN index even where few rows are allowed."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Result of searches under a filter."""

    recall: float
    """Recall@10 against brute force over the allowed rows."""
    p50_ms: float
    """Median latency of one query at a time, without the time of the filter itself, in milliseconds."""


def measure(settings: Settings) -> list[Row]:
    """Recall and latency by ANN index, layout and selectivity; and the time of filters themselves."""
    rows, dim = (4_000, 32) if settings.quick else (200_000, 128)
    collection = synthetic(rows, dim)
    vectors = Vectors([np.concatenate(list(collection.blocks()))], dim=dim)
    queries = collection.queries[: 20 if settings.quick else 100]
    report = []
    for kind in KINDS[:1] if settings.quick else KINDS:
        search = tuned(kind, vectors, settings.work / kind, tuning=collection.tuning)
        for layout, make in (("at random", at_random), ("together", together)):
            for share in SHARES:
                allowed = make(vectors, share)
                for way in Way:
                    found = measure_queries(search, vectors, queries, allowed=allowed, way=way)
                    what = f"{kind}, {share:.1%} {layout}, {way}"
                    note = f"{found.p50_ms:.2f} ms a query, {rows:,} x {dim}"
                    report.append(_row(what, found.recall, "ratio", None if way is Way.ANN else AIM, note))
    return report + [_row(f"filter: {text}", seconds, "s") for text, seconds in filters(settings)]


def _row(what: str, value: float, unit: str, aim: float | None = None, note: str = "") -> Row:
    better: Literal["higher", "lower"] = "higher" if unit == "ratio" else "lower"
    return Row(benchmark="filters", what=what, value=value, unit=unit, aim=aim, better=better, note=note)


def tuned(
    kind: IndexType, vectors: Vectors, path: Path, *, tuning: NDArray[np.float32], recall: float = AIM
) -> KnnSearcher:
    """A tuned ANN index over all vectors."""
    rows, dim = len(vectors), vectors.dim
    plan = plan_for(kind, rows=rows, dim=dim, budget=Budget(recall=recall))
    made = make_ann(path, vectors, plan=plan, queries=tuning)
    return KnnSearcher(vectors, candidates=FaissAnnIndex.read(path, plan=made))


def at_random(vectors: Vectors, share: float) -> NDArray[np.bool_]:
    """Rows drawn at random. Shape: (rows,), bool."""
    order = np.random.default_rng(5).permutation(len(vectors))
    return _first(order, share)


def together(vectors: Vectors, share: float) -> NDArray[np.bool_]:
    """The rows nearest to one of them. Shape: (rows,), bool."""
    rows = vectors.take(np.arange(len(vectors))).astype(np.float32)
    return _first(np.argsort(-(rows @ rows[3])), share)


def _first(order: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    allowed = np.zeros(len(order), dtype=np.bool_)
    allowed[order[: round(len(order) * share)]] = True
    return allowed


def measure_queries(
    search: KnnSearcher,
    vectors: Vectors,
    queries: NDArray[np.float32],
    *,
    allowed: NDArray[np.bool_],
    way: Way,
) -> Found:
    """Search one query at a time, and compare with brute force.

    Args:
        search: what is measured.
        vectors: its rows.
        queries: Shape: (n, dim), float32.
        allowed: rows that pass the filter. Shape: (rows,), bool.
        way: how they are answered.
    """
    ids = np.flatnonzero(allowed)
    exact = vectors.take(ids).astype(np.float32)
    hits, seconds = 0, []
    rule: dict[str, Any] = {} if way is Way.RULE else {"SCAN_ROWS": 0, "SCAN_SHARE": 0.0}
    with patch.multiple(nearest_neighbors, **rule) if rule else nullcontext():
        for query in queries:
            began = time.perf_counter()
            found = search.search(query[None], k=K, allowed=allowed)[0]
            seconds.append(time.perf_counter() - began)
            best = ids[np.argsort(-(exact @ query), kind="stable")[:K]]
            hits += len({id for id, _ in found} & set(best.tolist()))
    recall = hits / (len(queries) * min(K, len(ids)))
    return Found(recall=recall, p50_ms=1000 * percentile(seconds, 50))


FILTERS = (
    "width > height",
    "time >= '2023-11-20' AND size < 110kB",
    "caption LIKE '%number 77%'",
    "caption CONTAINS 'ДОМ'",
    "meta.author = 'p7'",
    "meta.year BETWEEN 2010 AND 2014",
    "meta.tags HAS 'a'",
    "copies > 1",
    "key = 'summer/lake/00000077.jpg'",
)


def filters(settings: Settings) -> list[tuple[str, float]]:
    """Seconds that filters take over the items of an index."""
    rows = 2_000 if settings.quick else 200_000
    path = settings.work / "items.db"
    _write_items(path, rows)
    items = connect(path)
    guard(items)
    found = []
    for text in FILTERS:
        where = compile_where(text)
        where.mask(items, rows=rows, commit=1)
        began = time.perf_counter()
        where.mask(items, rows=rows, commit=1)
        found.append((f"{text}, {rows:,} items", time.perf_counter() - began))
    items.close()
    return found


def _write_items(path: Path, rows: int) -> None:
    import json
    import sqlite3

    columns = "id, added, source, key, size, mtime_ns, hash, width, height, caption, metadata, checksum"
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA)
        marks = ", ".join("?" * 12)
        db.executemany(
            f"INSERT INTO items ({columns}) VALUES ({marks})",
            (
                (
                    number,
                    1,
                    0,
                    f"summer/lake/{number:08d}.jpg",
                    100_000 + number % 20_000,
                    1_700_000_000 * 10**9 + number * 10**9,
                    (number // 2 * 2).to_bytes(16, "big"),
                    640,
                    480 + number % 500,
                    f"A dog, number {number}, runs over the green lawn before the house",
                    json.dumps(
                        {"author": f"p{number % 1000}", "year": 2000 + number % 25, "tags": ["a", "b"]}
                    ),
                    0,
                )
                for number in range(rows)
            ),
        )
    db.close()
