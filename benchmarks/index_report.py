"""Tables and plots of what ``benchmarks.index_scale`` measured: ``benchmarks/results/index.md``.

    python -m benchmarks.index_report

Nothing is in them that was not measured; what was not reached or not run is left out or said to be so.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.index_scale import COLLECTIONS, ENGINES
from benchmarks.measuring import machine

TARGETS = (0.95, 0.99)
Curve = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m benchmarks.index_report``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/index.jsonl"))
    parser.add_argument("--plots", action="store_true", help="also draw the plots: needs matplotlib")
    options = parser.parse_args(arguments)
    lines = options.results.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    page = options.results.with_suffix(".md")
    names = sorted({row["collection"] for row in rows}, key=lambda name: (_rows(rows, name), name))
    plots = {name: plot(rows, name, folder=page.parent) for name in names} if options.plots else {}
    page.write_text("\n".join(report(rows, names, plots)) + "\n", "utf-8")
    print(f"written to {page}")


def _rows(rows: Iterable[dict[str, Any]], name: str) -> int:
    return next(int(row["rows"]) for row in rows if row["collection"] == name)


def curves(rows: Iterable[dict[str, Any]], name: str) -> dict[tuple[str, str], Curve]:
    """The points of each engine and kind over a collection, by recall; of several runs the last."""
    found: dict[tuple[str, str], Curve] = {}
    for row in rows:
        if row["collection"] == name and row["piece"] == "search":
            found.setdefault((row["engine"], row["kind"]), []).append(row)
    return {key: sorted(_last(each), key=lambda row: float(row["recall"])) for key, each in found.items()}


def _last(rows: Curve) -> Curve:
    """The rows of the last run: what was measured again replaces what was."""
    last = max(row["run"] for row in rows)
    return [row for row in rows if row["run"] == last]


def at_recall(curve: Curve, recall: float, what: str) -> float | None:
    """A curve's value at a recall: between its neighbours on a line of logarithms; None if it does not come so far.

    A curve that begins above the recall has the value of its first point.
    """
    if not curve or curve[-1]["recall"] < recall or what not in curve[0]:
        return None
    above = next(number for number, row in enumerate(curve) if row["recall"] >= recall)
    if not above:
        return float(curve[0][what])
    low, high = curve[above - 1], curve[above]
    share = (recall - low["recall"]) / (high["recall"] - low["recall"])
    return math.exp((1 - share) * math.log(low[what]) + share * math.log(high[what]))


def report(rows: list[dict[str, Any]], names: Sequence[str], plots: dict[str, str]) -> list[str]:
    """The page."""
    where = machine()
    dates = sorted(row["date"][:10] for row in rows)
    lines = [
        "# Indexes from ten thousand to a million vectors",
        "",
        f"Measured on {dates[0]}{f' to {dates[-1]}' if dates[-1] != dates[0] else ''} on {where['processor']} with "
        f"{where['cores']} cores, which other work shared, by `python -m benchmarks.index_scale`; this page is "
        "written by `python -m benchmarks.index_report --plots` from [index.jsonl](index.jsonl).",
        "",
        "- *clustered* vectors are made up: clusters of unequal size, a falling spectrum; queries are drawn alike.",
        "- *CLIP, jittered* are real CLIP ViT-B/32 vectors of 1,000 photographs, each moved by differences of others;",
        "  queries are the real vectors of 500 captions, which lie outside the cloud of images and are harder.",
        "- Recall@10 is counted against an exact search of the stored vectors. One query at a time is asked by one",
        "  thread, the best of three times for each of 200 queries (of four for 40 to 100 where all is scanned);",
        "  batches of all queries are asked by two threads, the best of five times; what batches take more",
        "  than bare FAISS is counted in processor time, which other work on the machine changes least.",
        "- Values at a recall lie between the two measured points beside it, on a line of logarithms.",
        "- FAISS is bare FAISS searching the same ANN index as ours; ours also re-ranks by the stored vectors.",
        "",
        "## Building and opening a whole index",
        "",
        "With the items (keys, hashes, sizes), the vectors and an IVF-SQ8 index. Opening is measured in a fresh",
        "process after imports; memory is what it holds more after 200 queries, and mapped memory can be taken back.",
        "",
        "| collection | items and vectors written, s | ANN index built, s | vectors | ANN index | items | "
        "open, ms | open and first hit, ms | a query, ms | own memory | mapped |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        built = [row for row in rows if row["collection"] == name and row["piece"] == "index"]
        lines += [_index_row(row) for row in (_last(built) if built else [])]
    for name in names:
        lines += ["", f"## {name}", ""]
        if name in plots:
            lines += [f"![recall and speed over {name}]({plots[name]})", ""]
        found = curves(rows, name)
        lines += _table(found) + _overheads(found) + _commits(found)
    return lines + _missing(rows)


def _missing(rows: list[dict[str, Any]]) -> list[str]:
    """What a full run would have measured and this one has not."""
    lines = ["", "## Not measured", ""]
    for name in COLLECTIONS:
        kind, _, size = name.partition(":")
        count, _, dim = size.partition("x")
        mine = [
            row
            for row in rows
            if row["rows"] == int(count)
            and row["collection"].lower().startswith(kind)
            and (not dim or row["dim"] == int(dim))
        ]
        done = {row["piece"] for row in mine if row["piece"] == "index"}
        for row in mine:
            if row["piece"] == "search" and row["engine"] != "FAISS":
                what = row["kind"].removeprefix("hnsw-") if row["engine"] == "usearch" else row["kind"]
                done |= {"exact"} if what == "flat-fp16" else {f"{row['engine']}:{what}", row["engine"]}
        if left := [engine for engine in ENGINES if engine not in done]:
            lines.append(f"- {name}: {', '.join(left)}" if done else f"- {name}: nothing")
    return lines if len(lines) > 3 else []


def _index_row(row: dict[str, Any]) -> str:
    files = row["files"]
    sizes = (_mb(files.get(kind, 0)) for kind in ("npy", "faiss", "db"))
    numbers = (row["open_ms"], row["open_and_first_ms"], row["search_ms"])
    cells = [row["collection"], row["items_s"], row["structure_s"], *sizes, *numbers]
    return _line([*cells, _mb(row["anonymous"]), _mb(row["mapped"])])


def _table(found: dict[tuple[str, str], Curve]) -> list[str]:
    heads = ["engine", "type", "size", "built in, s"]
    for target in TARGETS:
        heads += [f"{target:g}: ms", "queries/s, one at a time", "queries/s, at once"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for (engine, kind), curve in found.items():
        cells: list[object] = [engine, kind, _mb(curve[0]["bytes"]), curve[0]["build_s"]]
        for target in TARGETS:
            single, batch = (at_recall(curve, target, what) for what in ("single_ms", "batch_qps"))
            if single is None or batch is None:
                cells += [f"reaches {curve[-1]['recall']:.3f}", "", ""]
            else:
                cells += [f"{single:.3g}", f"{1e3 / single:,.0f}", f"{batch:,.0f}"]
        lines.append(_line(cells))
    return lines


def _overheads(found: dict[tuple[str, str], Curve]) -> list[str]:
    lines: list[str] = []
    for (engine, kind), curve in found.items():
        bare = found.get(("FAISS", kind))
        if engine != "ours" or bare is None:
            continue
        for target in TARGETS:
            ours, theirs = (at_recall(each, target, "single_ms") for each in (curve, bare))
            batch, bare_batch = (at_recall(each, target, "batch_cpu_ms") for each in (curve, bare))
            if ours is None or theirs is None:
                continue
            many = (
                "" if batch is None or bare_batch is None else f" and {batch / bare_batch - 1:+.0%} at once"
            )
            lines.append(
                f"- {kind} at a recall of {target:g}: ours takes {ours / theirs - 1:+.0%} one at a time{many}, "
                "compared with bare FAISS."
            )
    return ["", *lines] if lines else []


def _commits(found: dict[tuple[str, str], Curve]) -> list[str]:
    """Which code was measured: not every engine was run again after each change."""
    made: dict[str, list[str]] = {}
    for (engine, kind), curve in found.items():
        made.setdefault(curve[0]["commit"], []).append(f"{engine} {kind}")
    told = "; ".join(f"{', '.join(engines)} at {commit}" for commit, engines in made.items())
    return ["", f"Measured at these commits: {told}."] if told else []


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def plot(rows: list[dict[str, Any]], name: str, *, folder: Path) -> str:
    """Draw recall against queries a second, one at a time; returns the name of the image's file."""
    pyplot = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for (engine, kind), curve in curves(rows, name).items():
        speeds = [1e3 / float(row["single_ms"]) for row in curve]
        style = {"ours": "-o", "FAISS": "--o"}.get(engine, ":s")
        axes.plot([row["recall"] for row in curve], speeds, style, label=f"{engine} {kind}", markersize=4)
    axes.set(xlabel="recall@10", ylabel="queries a second, one at a time", yscale="log", title=name)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    file = "index-" + "".join(c if c.isalnum() else "-" for c in name.lower()).replace("--", "-") + ".svg"
    figure.savefig(folder / file, metadata={"Date": None})
    pyplot.close(figure)
    return file


if __name__ == "__main__":
    main()
