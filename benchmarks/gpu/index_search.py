"""Searching on a GPU beside a CPU: the same answers, and queries a second, one at a time and many at once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.index_data import synthetic
from benchmarks.measuring import Row
from benchmarks.report import table, terminal_columns
from llm2clip.indexer.ann.exact_scan_torch import TorchScan
from llm2clip.indexer.ann.faiss_flat import wheel
from llm2clip.indexer.ann.gpu_index import GpuIndex
from llm2clip.indexer.ann.index_file import faiss_on_gpu
from llm2clip.indexer.ann.nearest_neighbors import Candidates, KnnSearcher
from llm2clip.indexer.storage.vector_segments import Vectors

SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m benchmarks.gpu.index_search``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    made = synthetic(options.rows, options.dim)
    vectors = Vectors(list(made.blocks()), dim=made.dim)
    print(f"FAISS: {wheel()}")
    searches: dict[str, Candidates | None] = {"cpu": None, "torch": TorchScan(vectors, device=options.device)}
    if faiss_on_gpu():
        searches["FAISS on the GPU"] = GpuIndex.flat(vectors, device=options.device)
    allowed = np.random.default_rng(0).random(made.rows) < 0.1
    known = KnnSearcher(vectors)
    rows: list[Row] = []
    for name, candidates in searches.items():
        search = KnnSearcher(vectors, candidates=candidates)
        for mask in (None, allowed):
            same = search.search(made.queries[:64], k=10, allowed=mask) == known.search(
                made.queries[:64], k=10, allowed=mask
            )
            rows.append(
                Row(
                    benchmark=name,
                    what=_label(mask, "same answers"),
                    value=float(same),
                    unit="",
                    aim=1,
                    better="higher",
                )
            )
        for many in (1, 256):
            queries = made.queries[:many]
            rate = many * _per_second(lambda search=search, queries=queries: search.search(queries, k=10))  # type: ignore[misc]
            rows.append(
                Row(benchmark=name, what=f"{many} at once", value=rate, unit="queries/s", better="higher")
            )
    print(table(rows, columns=terminal_columns()))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")


def _label(mask: object, what: str) -> str:
    return what if mask is None else f"{what} under a filter of 10 %"


def _per_second(call: Callable[[], object]) -> float:
    """Calls per second; answers lie in main memory when a call returns."""
    call()
    began, done = perf_counter(), 0
    while not done or perf_counter() - began < SECONDS:
        call()
        done += 1
    return done / (perf_counter() - began)


if __name__ == "__main__":
    main()
