"""Sizes and times to expect from ten thousand to a billion images, reckoned from what was measured.

    python -m benchmarks.index_scaling --dim 1280

Prints the table of docs/scaling.md. Every time is one that ``benchmarks.index_scale`` measured on two cores, multiplied
by how the work grows; how it grows is written beside each function.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.index_report import at_recall, curves
from llm2clip.indexer.ann.index_types import GRAPH_LISTS, POINTS_PER_LIST, estimate_cost, nlist_for

SIZES = (10**4, 10**5, 10**6, 10**7, 10**8, 10**9)
ROUNDS = 8
"""Of k-means."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured over one collection, the largest there is."""

    rows: int
    """Vectors."""
    dim: int
    """Their length."""
    items_s: float
    """Seconds to write items and vectors."""
    items_bytes: float
    """Bytes of the items of one image."""
    structure_s: float
    """Seconds to build the ANN index."""
    exact_ms: float
    """Milliseconds of an exact query."""
    ivf_ms: float
    """Milliseconds of a query at a recall of 0.95 with IVF-SQ8."""


def read(path: Path) -> Measured:
    """The largest collection of which everything was measured."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    whole = [row for row in rows if row["piece"] == "index"]
    for row in sorted(whole, key=lambda row: -int(row["rows"])):
        found = curves(rows, row["collection"])
        exact = at_recall(found.get(("ours", "flat-fp16"), []), 0.95, "single_ms")
        ivf = at_recall(found.get(("ours", "ivf-sq8"), []), 0.95, "single_ms")
        if exact is not None and ivf is not None:
            return Measured(
                rows=row["rows"],
                dim=row["dim"],
                items_s=row["items_s"],
                items_bytes=row["files"]["db"] / row["rows"],
                structure_s=row["structure_s"],
                exact_ms=exact,
                ivf_ms=ivf,
            )
    raise SystemExit(f"{path} has no collection with an index, the exact scan and ivf-sq8")


def build_work(rows: int, dim: int) -> float:
    """Inner products to build an IVF index: k-means over a sample, then one centroid per row."""
    nlist = nlist_for(rows)
    compared = nlist if nlist < GRAPH_LISTS else 200 * math.log2(nlist)
    return dim * (ROUNDS * POINTS_PER_LIST * nlist * nlist + rows * compared)


def line(rows: int, dim: int, known: Measured) -> list[str]:
    """One line of the table."""
    vectors, items = rows * dim * 2, rows * known.items_bytes
    coded, bits = (estimate_cost(kind, rows=rows, dim=dim).bytes for kind in ("ivf-sq8", "ivf-rabitq"))
    written = known.items_s * rows / known.rows * max(1.0, dim / known.dim)
    made = known.structure_s * build_work(rows, dim) / build_work(known.rows, known.dim)
    exact = known.exact_ms * (rows * dim) / (known.rows * known.dim)  # every number is read once
    # nlist and the rows that are probed both grow with the root.
    through = known.ivf_ms * math.sqrt(rows / known.rows) * dim / known.dim
    sizes = (_size(each) for each in (vectors, items, coded, bits))
    return [f"{rows:,}", *sizes, _time(written), _time(made), _time(exact / 1e3), _time(through / 1e3)]


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m benchmarks.index_scaling``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/index.jsonl"))
    parser.add_argument("--dim", type=int, default=1280)
    options = parser.parse_args(arguments)
    known = read(options.results)
    heads = ["images", "vectors", "items", "IVF-SQ8", "IVF-RaBitQ", "vectors written", "IVF built"]
    heads += ["a query, exact", "a query, IVF-SQ8"]
    print(f"From {known.rows:,} x {known.dim}:\n")
    for cells in (heads, ["---"] * len(heads), *(line(rows, options.dim, known) for rows in SIZES)):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
