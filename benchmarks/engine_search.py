"""The same vectors searched here and in other engines: python -m benchmarks.engine_search ADDRESS...

Real CLIP vectors, jittered (``index_data.clip``), are written into an index, planned for the recall, and exported to
each address. Every engine is asked the same queries, captions, one at a time and in turns, with and without a filter
that a hundredth of the images pass. Recall@10 is counted against an exact search. The servers have to be running.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from benchmarks.index_data import Collection, clip
from llm2clip.indexer import Index, SearchableIndex, open_index
from llm2clip.indexer.ann.plan import Budget
from llm2clip.indexer.core.address import as_address
from llm2clip.indexer.engines.export import export_to_engine
from llm2clip.indexer.engines.opening import open_anywhere
from llm2clip.indexer.lifecycle.commit import commit
from llm2clip.indexer.planner.plan_index import BudgetPlanner
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.storage.manifest import empty_manifest
from llm2clip.indexer.storage.outcome import Outcome
from llm2clip.indexer.storage.transaction import Transaction

K = 10
PASSING = "width <= 10"
"""A filter that a hundredth of the images pass."""


def make_index(folder: Path, made: Collection, *, recall: float) -> Index:
    """An index of vectors without images; image ``n`` is ``n % 1000 + 1`` pixels wide."""
    base = empty_manifest(
        sources=[{"kind": "folder", "spec": "p", "root": "/p"}],
        encoder={"name": "clip", "dim": made.dim, "weights_sha256": "0", "preprocessing": "none"},
        encoder_source="clip",
    )
    folder.mkdir()
    number = 0
    with Transaction.create(folder, base) as transaction:
        for block in made.blocks():
            outcomes = []
            for row in block:
                record = Record(
                    key=f"{number // 1000}/{number}.jpg",
                    uri="",
                    file=Path(),
                    size=1,
                    mtime_ns=1,
                    caption=f"number {number}",
                )
                outcomes.append(
                    Outcome(
                        record=record,
                        vector=row,
                        hash=number.to_bytes(16, "big"),
                        width=number % 1000 + 1,
                        height=1,
                    )
                )
                number += 1
            transaction.append(outcomes)
        commit(transaction, folder, planner=BudgetPlanner(budget=Budget(recall=recall, p95_ms=3.0)))
    return open_index(folder)


def truth_of(index: Index, queries: NDArray[np.float32], where: str | None) -> list[set[int]]:
    """The true ten of each query, from all stored vectors at once."""
    rows = np.concatenate([block for _, block in index.vectors.blocks()]).astype(np.float32)
    scores = queries @ rows.T
    allowed = index.allowed(where)
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return [set(np.argpartition(-row, K)[:K].tolist()) for row in scores]


def measure(
    indexes: dict[str, SearchableIndex], index: Index, queries: NDArray[np.float32], where: str | None
) -> dict[str, dict[str, float]]:
    """Recall@10, median milliseconds and queries a second of each, asked one at a time in turns."""
    truth = truth_of(index, queries, where)
    took: dict[str, list[float]] = {name: [] for name in indexes}
    right = dict.fromkeys(indexes, 0)
    for each in indexes.values():
        each.search(queries[:5], k=K, where=where)
    for number in range(len(queries)):
        for name, each in indexes.items():
            began = perf_counter()
            hits = each.search(queries[number : number + 1], k=K, where=where)[0]
            took[name].append(perf_counter() - began)
            right[name] += len(truth[number] & {hit.id for hit in hits})
    return {
        name: {
            "recall": right[name] / (K * len(queries)),
            "median_ms": float(np.median(times)) * 1e3,
            "p95_ms": float(np.percentile(times, 95)) * 1e3,
            "queries_per_s": len(times) / sum(times),
        }
        for name, times in took.items()
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_search", description=__doc__)
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of real CLIP vectors (index_data.clip)"
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--json", type=Path, metavar="FILE")
    told = parser.parse_args()
    made = clip(told.rows, told.data)
    if made is None:
        sys.exit(f"no CLIP vectors in {told.data}")
    with tempfile.TemporaryDirectory() as work:
        index = make_index(Path(work) / "i", made, recall=told.recall)
        print(f"local: {index.explain()[-1]}", flush=True)
        opened: dict[str, SearchableIndex] = {"local": index}
        exported = {}
        for address in told.addresses:
            place = as_address(address)
            if place is None:
                sys.exit(f"{address} is no address of an engine")
            report = export_to_engine(index.path, place, recall=told.recall)
            exported[place.scheme] = {
                "rows_per_s": report.sent / report.write_seconds,
                "index_s": report.index_seconds,
                "kind": report.kind,
                "effort": report.effort,
            }
            print(f"{place}: {exported[place.scheme]}", flush=True)
            opened[place.scheme] = open_anywhere(place)
        queries = made.queries[: told.queries]
        results = {where or "all": measure(opened, index, queries, where) for where in (None, PASSING)}
    for where, found in results.items():
        for name, figures in found.items():
            line = ", ".join(f"{what} {value:.4g}" for what, value in figures.items())
            print(f"{where:12} {name:12} {line}", flush=True)
    if told.json:
        told.json.write_text(
            json.dumps({"rows": told.rows, "exported": exported, "search": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
