"""Run the benchmarks and print one table, with the aims set beforehand and whether they are met."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Row, Settings, machine, quick_corpus

BENCHMARKS = {
    "build": "build_rate",
    "cold": "cold_search",
    "search": "search_ratio",
    "encode": "query_latency",
    "images": "image_side",
    "texts": "text_side",
    "cc": "caption_contrast",
    "quantised": "quantised",
    "ingest": "ingest",
    "filters": "filters",
    "metrics": "metrics",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m benchmarks``."""
    options = _parser().parse_args(arguments)
    where = machine()
    notes = Console(stderr=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="llm2clip-bench-") as work:
        corpus = quick_corpus(options.corpus, Path(work) / "images") if options.quick else options.corpus
        for name in options.names or BENCHMARKS:
            notes.print(f"measuring: {name}", style="dim")
            settings = Settings(
                encoder=options.encoder,
                corpus=corpus,
                work=Path(work) / name,
                processor_time=options.processor_time,
                llm2vec=options.llm2vec,
                quick=options.quick,
            )
            settings.work.mkdir()
            rows += import_module(f"benchmarks.{BENCHMARKS[name]}").measure(settings)
    Console().print(table(rows))
    if options.json:
        written = report(rows, where=where, settings=vars(options))
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps(written, indent=2, ensure_ascii=False, default=str) + "\n", "utf-8"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all if none is named"
    )
    parser.add_argument("--encoder", default="nano", help="encoder name or folder (default: %(default)s)")
    parser.add_argument("--corpus", default="sample:", help="images to index (default: %(default)s)")
    parser.add_argument(
        "--llm2vec",
        metavar="PYTHON",
        help="interpreter with llm2vec to compare texts with, or 'install' to make one (needs a network)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the numbers with machine and versions"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: to see that it runs, not to report"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="measure processor instead of wall time, as on a busy machine",
    )
    return parser


def table(rows: Sequence[Row]) -> Table:
    """The report for people."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("benchmark", "what"):
        shown.add_column(column)
    for column in ("value", "aim"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("")
    shown.add_column("how", style="dim")
    last = ""
    for row in rows:
        aim = "" if row.aim is None else f"{'≥' if row.better == 'higher' else '≤'} {row.aim:g}"
        verdict = {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}[row.met]
        unit = "" if row.unit == "ratio" else f" {row.unit}"
        first = row.benchmark if row.benchmark != last else ""
        shown.add_row(first, row.what, f"{_number(row.value)}{unit}", aim, verdict, row.note)
        last = row.benchmark
    return shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def report(
    rows: Sequence[Row], *, where: dict[str, object], settings: dict[str, object]
) -> dict[str, object]:
    """The report for machines: rows with their aims, machine, versions and date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks",
        "settings": {name: value for name, value in settings.items() if name not in ("json", "llm2vec")},
        "machine": where,
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }


if __name__ == "__main__":
    main()
