"""The commands ``llm2clip-eval run``, ``leaderboard`` and ``compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llm2clip.common.entrypoint import graceful_interrupt
from llm2clip.common.terminal import log_stderr, one_line_errors

if TYPE_CHECKING:
    from llm2clip.eval.commands.arguments import Parity

RESULTS = Path("eval-results")
"""Where results go and are read from by default."""

Names = Annotated[list[str], typer.Option("--encoder", help="Name, folder or LABEL=either; several times.")]
Results = Annotated[
    list[Path] | None, typer.Argument(help="Result files, or folders of them.", show_default="eval-results")
]


def run(
    *,
    encoder: Names,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Declared protocol, ID or ID:LANGUAGE; several times.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder or tar of your own with captions, or NAME=either; several times."),
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Language of the captions, or all; several times.")
    ] = None,
    data_folder: Annotated[
        Path | None, typer.Option(help="Data folder of all protocols; by default in the data home.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results, one JSON per encoder and set.")] = RESULTS,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of vectors, so that none is made twice; by default in the data home."),
    ] = None,
    through: Annotated[
        list[Path] | None,
        typer.Option(help="Index over the images: also measure what it loses; several times."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="FILTER", help="Search the indexes of --through under this filter."),
    ] = None,
    lengths: Annotated[
        bool, typer.Option(help="Split by length; ask long captions again with their beginnings.")
    ] = True,
    hubs: Annotated[
        bool, typer.Option(help="Count hubs and correct for them: four more passes over all scores.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto, float32, float16, bfloat16; int8, int4 of LLM2CLIP's texts.")
    ] = "auto",
    parity: Annotated[
        str,
        typer.Option(help="native, or upstream: repeat the original's mistakes to compare with its numbers."),
    ] = "native",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first images: a try, called +partial.")
    ] = None,
) -> None:
    """Measure encoders on sets, in both directions, with intervals.

    Vectors are kept: a second run encodes nothing, an interrupted one goes on where it stopped.
    """
    with one_line_errors(extra="cpu", interrupted=": start the same command again to go on"):
        from llm2clip.common.paths import data_home
        from llm2clip.eval.commands import arguments as choosing
        from llm2clip.eval.loaders.load import default_data
        from llm2clip.eval.report.progress import TerminalReporter
        from llm2clip.eval.runner.measure import MeasureOptions
        from llm2clip.eval.runner.run import RunOptions
        from llm2clip.eval.runner.run import run as measure

        if parity not in ("native", "upstream"):
            raise typer.BadParameter(f"got {parity!r}, expected native or upstream", param_hint="--parity")
        if where is not None and not through:
            raise typer.BadParameter("got a filter without --through INDEX to search", param_hint="--where")
        picked = choosing.candidates(encoder, device=device, dtype=dtype, parity=cast("Parity", parity))
        options = RunOptions(
            measure=MeasureOptions(hubs=hubs),
            out=out,
            cache=cache or data_home() / "eval-vectors",
            through=tuple(through or ()),
            where=where,
            lengths=lengths,
        )
        out.mkdir(parents=True, exist_ok=True)
        with graceful_interrupt(), TerminalReporter() as reporter:
            chosen = choosing.sets(
                dataset or [], data or [], folder=data_folder or default_data(), languages=language or []
            )
            whole = [one.first(limit) if limit else one for one in chosen]
            for result in measure(picked, whole, options=options, reporter=reporter):
                typer.echo(out / result.file_name)
        log_stderr(f"see them with: llm2clip-eval leaderboard {out}")


def leaderboard(
    results: Results = None,
    *,
    markdown: Annotated[Path | None, typer.Option(help="Also write Markdown here.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write every number here, one to a line.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page here.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Printed rows to show beside ours, for each set.")] = 5,
) -> None:
    """Show results beside the published table, with differences, bands, and what is wrong with some rows."""
    with one_line_errors():
        from rich.console import Console

        from llm2clip.eval.report.html import render_page
        from llm2clip.eval.report.leaderboard import build_board
        from llm2clip.eval.report.markdown import csv_text
        from llm2clip.eval.report.markdown import markdown as as_markdown
        from llm2clip.eval.report.terminal import terminal_tables
        from llm2clip.eval.results.validation import read_results

        board = build_board(read_results(results or [RESULTS]))
        console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=150)
        log_stderr("R@k in percent, 95 % interval below; T→I: texts ask for images, I→T: images for texts")
        for each in terminal_tables(board, limit=top, width=console.width):
            console.print(each)
        if markdown:
            _write(markdown, as_markdown(board, limit=top))
        if csv:
            _write(csv, csv_text(board))
        if html:
            _write(html, render_page(board))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    log_stderr(f"wrote {path}")


def compare(
    first: Annotated[str, typer.Argument(help="An encoder's label, as results call it.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    results: Results = None,
) -> None:
    """Say which of two encoders is better on the sets that both were measured on, and how sure that is."""
    with one_line_errors():
        from rich.console import Console

        from llm2clip.eval.report.compare import compare_encoders, comparison_table, conclusion
        from llm2clip.eval.results.validation import read_results

        found = compare_encoders(read_results(results or [RESULTS]), first, second)
        console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=150)
        console.print(comparison_table(found))
        for line in conclusion(found):
            typer.echo(line)
