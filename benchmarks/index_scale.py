"""Indexes from ten thousand to a million vectors: building, opening, memory, and speed at a recall, beside others.

    python -m benchmarks.index_scale --collection clip:100000 --engine index ours:ivf-sq8 usearch:f16

Every engine of every collection is one piece of work whose numbers are appended to a file, so that a long run can be
made in parts; ``python -m benchmarks.index_report`` writes the tables and plots from that file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import index_engines as engines
from benchmarks.index_data import Collection, clip, synthetic
from benchmarks.measuring import machine
from llm2clip.indexer import open_index
from llm2clip.indexer.ann.faiss_flat import import_faiss
from llm2clip.indexer.ann.index_types import estimate_cost, plan_for
from llm2clip.indexer.ann.plan import Budget
from llm2clip.indexer.core.results import StoredVectors
from llm2clip.indexer.lifecycle.commit import commit
from llm2clip.indexer.planner.plan_index import write_ann
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.storage.manifest import empty_manifest
from llm2clip.indexer.storage.outcome import Outcome
from llm2clip.indexer.storage.transaction import Transaction
from llm2clip.indexer.storage.vector_segments import Vectors

COLLECTIONS = (
    "clustered:10000x512",
    "clip:10000",
    "clustered:100000x512",
    "clip:100000",
    "clustered:200000x1280",
    "clustered:1000000x512",
    "clip:1000000",
)
ENGINES = ("index", "exact", "ours:ivf-sq8", "ours:ivf-rabitq", "usearch:f16", "usearch:i8", "autofaiss")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m benchmarks.index_scale``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--collection", nargs="+", default=COLLECTIONS, help="clustered:ROWSxDIM or clip:ROWS"
    )
    parser.add_argument(
        "--engine", nargs="+", default=ENGINES, help=f"of: {' '.join(ENGINES)}, ours:KIND, autofaiss:more"
    )
    parser.add_argument("--clip", type=Path, help="folder with val_image.npy and val_text_caption0.npy")
    parser.add_argument("--work", type=Path, required=True, help="folder for vectors and indexes; kept")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/index.jsonl"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    import_faiss().omp_set_num_threads(options.threads)
    for name in options.collection:
        found = collection_of(name, options.clip)
        if found is None:
            print(f"skipped {name}: no CLIP vectors there; name their folder with --clip")
            continue
        for engine in options.engine:
            run = datetime.now(UTC).isoformat(timespec="seconds")
            for row in piece(
                found, engine, work=options.work / name.replace(":", "-"), threads=options.threads
            ):
                _keep(
                    options.results,
                    {"run": run, "collection": found.name, "rows": found.rows, "dim": found.dim, **row},
                )


def collection_of(name: str, folder: Path | None) -> Collection | None:
    """The collection of a name; None where it needs vectors that are not there."""
    kind, _, size = name.partition(":")
    if kind == "clip":
        return clip(int(size), folder) if folder is not None else None
    rows, _, dim = size.partition("x")
    return synthetic(int(rows), int(dim))


def piece(found: Collection, engine: str, *, work: Path, threads: int) -> Iterator[dict[str, Any]]:
    """Measure one engine over one collection."""
    folder = work / "index"
    if engine == "index" or not folder.exists():
        yield _index(found, folder)
        if engine == "index":
            return
    with open_index(folder) as index:
        vectors, ann = index.vectors, index.manifest.ann
        assert ann is not None
        task = engines.Task(
            vectors=vectors,
            queries=found.queries,
            tuning=found.tuning,
            truth=_truth(work, vectors, found),
            work=work,
            threads=threads,
        )
        name, _, what = engine.partition(":")
        if engine == "exact":
            results: Any = engines.exact(task)
        elif name == "ours":
            ready = folder / ann.file if what == "ivf-sq8" else None
            results = engines.ours(task, what, path=ready, build_s=_built(work))  # type: ignore[arg-type]
        elif name == "usearch":
            results = engines.usearch(task, what)
        else:
            ours = found.rows * found.dim * 2 + estimate_cost("ivf-sq8", rows=found.rows, dim=found.dim).bytes
            # Given three times the memory of the vectors it chooses a graph over float32, built much faster.
            results = engines.autofaiss(task, memory=found.rows * found.dim * 6 if what == "more" else ours)
        for point in results:
            yield {"piece": "search", "threads": threads, **asdict(point)}


def _truth(work: Path, vectors: Vectors, found: Collection) -> Any:  # noqa: ANN401
    path = work / "truth.npy"
    if not path.exists():
        np.save(path, engines.truth_of(vectors, found.queries))
    return np.load(path)


def _index(found: Collection, folder: Path) -> dict[str, Any]:
    """Write a whole index as a build would, but for the images; then open and ask it in a process of its own."""
    folder.mkdir(parents=True)
    base = empty_manifest(
        sources=[{"kind": "folder", "spec": "p", "root": "/p"}],
        encoder={"name": "ready", "dim": found.dim, "weights_sha256": "0", "preprocessing": "none"},
        encoder_source="ready",
    )
    took: dict[str, float] = {}

    def planner(path: Path, vectors: StoredVectors) -> dict[str, Any]:
        began = perf_counter()
        plan = plan_for("ivf-sq8", rows=found.rows, dim=found.dim, budget=Budget())
        plan = replace(plan, parameters={**plan.parameters, "refine": 2})
        write_ann(path, vectors, plan=plan)
        took["structure_s"] = perf_counter() - began
        return plan.to_json()

    began, number = perf_counter(), 0
    with Transaction.create(folder, base) as transaction:
        for block in found.blocks():
            transaction.append([_outcome(number + n, row) for n, row in enumerate(block)])
            number += len(block)
        took["items_s"] = perf_counter() - began
        commit(transaction, folder, planner=planner)
    took["commit_s"] = perf_counter() - began - took["items_s"]
    (folder.parent / "built.json").write_text(json.dumps(took), "utf-8")
    np.save(folder.parent / "queries.npy", found.queries[:200])
    sizes = {path.suffix.lstrip("."): 0 for path in folder.iterdir()}
    for path in folder.iterdir():
        sizes[path.suffix.lstrip(".")] += path.stat().st_size
    opened = _opened(folder)
    return {"piece": "index", **{k: round(v, 1) for k, v in took.items()}, "files": sizes, **opened}


def _built(work: Path) -> float:
    return float(json.loads((work / "built.json").read_text("utf-8"))["structure_s"])


_OPENED = """
import json, sys, time
from pathlib import Path
import faiss, numpy as np
from llm2clip.indexer import open_index
import llm2clip.indexer.ann.ivf_hnsw, llm2clip.indexer.ann.nearest_neighbors

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}

queries = np.load(sys.argv[2])
before, times = held(), []
for _ in range(5):
    began = time.perf_counter()
    index = open_index(sys.argv[1])
    index.search(queries[:1], k=10)
    times.append((time.perf_counter() - began) * 1e3)
    index.close()
began = time.perf_counter()
index = open_index(sys.argv[1])
bare = (time.perf_counter() - began) * 1e3
asked = []
for query in queries:
    began = time.perf_counter()
    index.search(query[None], k=10)
    asked.append((time.perf_counter() - began) * 1e3)
after = held()
print(json.dumps({
    "open_ms": bare, "open_and_first_ms": sorted(times)[2], "first_ever_ms": times[0],
    "search_ms": float(np.median(asked)),
    "anonymous": after["RssAnon"] - before["RssAnon"], "mapped": after["RssFile"] - before["RssFile"],
}))
"""


def _opened(folder: Path) -> dict[str, float]:
    """Milliseconds to open, and bytes held after 200 queries, in a fresh process."""
    command = [sys.executable, "-c", _OPENED, str(folder), str(folder.parent / "queries.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return {name: round(value, 2) for name, value in found.items()}


def _outcome(number: int, vector: np.ndarray[Any, np.dtype[np.float16]]) -> Outcome:
    record = Record(
        key=f"{number // 1000:04d}/{number:08d}.jpg", uri="", file=Path("x"), size=100_000, mtime_ns=1
    )
    return Outcome(record=record, vector=vector, hash=number.to_bytes(16, "little"), width=640, height=480)


def _keep(path: Path, row: dict[str, Any]) -> None:
    where = machine()
    row = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": where["commit"], **row}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(
        json.dumps({name: value for name, value in row.items() if name not in ("run", "date", "commit")}),
        flush=True,
    )


if __name__ == "__main__":
    main()
