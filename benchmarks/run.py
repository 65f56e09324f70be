"""Run the benchmarks and print one table, with the aims set beforehand and whether they are met."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.against import comparison_table, run_against
from benchmarks.measuring import Row, Settings, machine, quick_corpus
from benchmarks.report import report, table, terminal_columns

BENCHMARKS = {
    "build": "build_rate",
    "cold": "cold_search",
    "warm": "warm_search",
    "search": "search_ratio",
    "encode": "query_latency",
    "images": "image_side",
    "texts": "text_side",
    "cc": "caption_contrast",
    "align": "align_speed",
    "quantised": "quantised",
    "serving": "serving",
    "ingest": "ingest",
    "filters": "filters",
    "metrics": "metrics",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m benchmarks``."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llm2clip-bench-") as work:
        if options.against:
            _compare(options, Path(work))
        else:
            _measure(options, Path(work))


def _measure(options: argparse.Namespace, work: Path) -> None:
    where = machine()
    rows: list[Row] = []
    corpus = quick_corpus(options.corpus, work / "images") if options.quick else options.corpus
    for name in options.names or BENCHMARKS:
        print(f"measuring: {name}", file=sys.stderr)
        settings = Settings(
            encoder=options.encoder,
            corpus=corpus,
            work=work / name,
            processor_time=options.processor_time,
            llm2vec=options.llm2vec,
            quick=options.quick,
        )
        settings.work.mkdir()
        rows += import_module(f"benchmarks.{BENCHMARKS[name]}").measure(settings)
    print(table(rows, columns=terminal_columns()))
    if options.json:
        written = report(rows, where=where, settings=vars(options))
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps(written, indent=2, ensure_ascii=False, default=str) + "\n", "utf-8"
        )


def _compare(options: argparse.Namespace, work: Path) -> None:
    arguments = [*options.names, "--encoder", options.encoder, "--corpus", options.corpus]
    arguments += ["--quick"] * options.quick + ["--processor-time"] * options.processor_time
    try:
        found = run_against(options.against, arguments, rounds=options.rounds, work=work)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(comparison_table(found, commit=options.against))


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
    parser.add_argument(
        "--against", metavar="COMMIT", help="measure another commit too, in turn, and print the ratios"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --against (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
