"""What ``make eval`` runs: nano, its controls and random encoders, on the sample corpus.

The user's own images (``--data``) are measured on too. An interrupted run continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2clip.common.files import write_output
from llm2clip.common.terminal import graceful_interrupt, one_line_errors

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.eval.datasets.retrieval_set import RetrievalSet
    from llm2clip.eval.results.records import Result
    from llm2clip.eval.runner.run import Candidate

LANGUAGES = ("en", "zh", "es", "ar", "hi", "ja")
_OWN_LANGUAGES = ("en", "zh")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def make_eval(
    *,
    out: Annotated[Path, typer.Option(help="Folder of results and page.")] = Path("eval-output"),
    data: Annotated[
        list[str] | None, typer.Option(help="Your own folder or tar, PATH or NAME=PATH; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="First 100 images, English and Chinese only.")] = False,
) -> None:
    """Measure nano, its controls and random encoders, and write the leaderboard."""
    with one_line_errors(extra="cpu", interrupted=": run the same command again to continue"):
        from llm2clip.eval.commands.run import TerminalReporter
        from llm2clip.eval.runner.run import RunOptions, run

        options = RunOptions(out=out / "results", cache=out / "vectors")
        with graceful_interrupt(), TerminalReporter() as reporter:
            sets = list(_sets(data or [], quick=quick))
            found = list(run(list(candidates(out / "encoders")), sets, options=options, reporter=reporter))
        write_board(found, out)
        typer.echo(out / "leaderboard.html")


def candidates(folder: Path) -> Iterator[Candidate]:
    """nano, its variants, and encoders with random weights."""
    from llm2clip.encoders import load_encoder
    from llm2clip.eval.runner import controls
    from llm2clip.eval.runner.run import Candidate

    def random(family: str) -> Encoder:
        return load_encoder(controls.make_random(family, folder / f"random-{family}"))

    yield Candidate(label="nano", open=lambda: load_encoder("nano"))
    for name in controls.CONTROLS:
        variant = partial(controls.nano_control, name, folder / f"nano-{name}")
        yield Candidate(label=f"nano, {name}", open=variant)
    for family in controls.FAMILIES:
        yield Candidate(label=f"random {family}", open=partial(random, family))


def write_board(results: list[Result], out: Path) -> None:
    """Write the leaderboard of these results as page, Markdown and CSV."""
    from llm2clip.eval.report.csv_table import csv_text
    from llm2clip.eval.report.html import render_page
    from llm2clip.eval.report.leaderboard import build_board
    from llm2clip.eval.report.markdown import markdown

    board = build_board(results)
    for name, text in (
        ("leaderboard.html", render_page(board)),
        ("leaderboard.md", markdown(board, limit=5)),
        ("leaderboard.csv", csv_text(board)),
    ):
        write_output(out / name, text)


def _sets(own: list[str], *, quick: bool) -> Iterator[RetrievalSet]:
    from llm2clip.eval.commands.arguments import labelled
    from llm2clip.eval.loaders.image_folder import data_languages, load_data
    from llm2clip.indexer.core.index_paths import sample_folder

    wanted: list[tuple[str, Path, tuple[str, ...]]] = [("sample", sample_folder(), LANGUAGES)]
    wanted += [(name, Path(path), _OWN_LANGUAGES) for name, path in map(labelled, own)]
    for name, path, preferred in wanted:
        there = data_languages(path)
        languages: list[str | None] = [language for language in preferred if language in there]
        languages = languages or [*list(there)[:2]] or [None]
        for language in languages[:2] if quick else languages:
            whole = load_data(path, language=language, name=name or None)
            yield whole.first(100) if quick else whole


if __name__ == "__main__":
    app()
