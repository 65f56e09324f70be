"""The commands ``llm2clip-eval leaderboard`` and ``compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2clip.common.files import write_output
from llm2clip.common.terminal import log_stderr, one_line_errors
from llm2clip.eval.commands.options import RESULTS, ResultsArgument, output_option

if TYPE_CHECKING:
    from rich.console import Console


def leaderboard(
    results: ResultsArgument = None,
    *,
    top: Annotated[
        int, output_option(help="Published rows to show beside ours, per data set.", min=0, metavar="N")
    ] = 5,
    markdown: Annotated[Path | None, output_option(help="Also write Markdown.", metavar="FILE")] = None,
    csv: Annotated[
        Path | None, output_option(help="Also write every number, one per line.", metavar="FILE")
    ] = None,
    html: Annotated[
        Path | None, output_option(help="Also write a self-contained HTML page.", metavar="FILE")
    ] = None,
) -> None:
    """Show results beside published numbers.

    With differences, tolerances, and known errors in the published ones.
    """
    with one_line_errors():
        from llm2clip.eval.report.csv_table import csv_text
        from llm2clip.eval.report.html import render_page
        from llm2clip.eval.report.leaderboard import build_board
        from llm2clip.eval.report.markdown import markdown as as_markdown
        from llm2clip.eval.report.terminal import terminal_tables
        from llm2clip.eval.results.validation import read_results

        board = build_board(read_results(results or [RESULTS]))
        console = _console()
        log_stderr(
            "R@k in percent, 95 % interval below; T→I: text to image, I→T: image to text; "
            "images/s, texts/s, memory: cost where measured"
        )
        for each in terminal_tables(board, limit=top, width=console.width):
            console.print(each)
        if markdown:
            _write(markdown, as_markdown(board, limit=top))
        if csv:
            _write(csv, csv_text(board))
        if html:
            _write(html, render_page(board))


def compare(
    first: Annotated[
        str, typer.Argument(metavar="FIRST", help="Label of an encoder, or the beginning of its hash.")
    ],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="The other encoder.")],
    results: ResultsArgument = None,
) -> None:
    """Test which of two encoders is better.

    On all data sets that both were measured on.
    """
    with one_line_errors():
        from llm2clip.eval.report.compare import compare_encoders, comparison_table, conclusion
        from llm2clip.eval.results.validation import read_results

        found = compare_encoders(read_results(results or [RESULTS]), first, second)
        _console().print(comparison_table(found))
        for line in conclusion(found):
            typer.echo(line)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=150)


def _write(path: Path, text: str) -> None:
    write_output(path, text)
    log_stderr(f"wrote {path}")
