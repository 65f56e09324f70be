"""What ``make eval`` runs: nano, its controls and chance, on what this package can make itself, and the page of it.

Where images of one's own are named (``--data``), they are measured on too. Everything goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2clip.common.entrypoint import graceful_interrupt
from llm2clip.common.terminal import log_stderr, one_line_errors

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.eval.datasets.retrieval_set import RetrievalSet
    from llm2clip.eval.results.records import Result
    from llm2clip.eval.runner.run import Candidate

EMOJI, SCENES = "openmoji.tar", "scenes.tar"
_EMOJI_LANGUAGES = ("en", "zh", "ar", "de", "hi", "ja", "ru", "sw")
_SCENE_LANGUAGES = ("en", "zh")
_OWN_LANGUAGES = ("en", "zh")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def everything(
    *,
    out: Annotated[Path, typer.Option(help="Folder of results and page.")] = Path("eval-output"),
    made: Annotated[
        Path | None, typer.Option(help="Folder of openmoji.tar and scenes.tar; made when missing.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Folder or tar of your own, or NAME=either; several times.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="First 100 images, English and Chinese only.")] = False,
) -> None:
    """Measure nano, its controls and random encoders of every family, and write the leaderboard."""
    with one_line_errors(extra="train", interrupted=": start the same command again to go on"):
        from llm2clip.common.paths import data_home
        from llm2clip.eval.report.progress import TerminalReporter
        from llm2clip.eval.runner.run import RunOptions, run

        folder = made or data_home() / "eval"
        options = RunOptions(out=out / "results", cache=out / "vectors")
        with graceful_interrupt(), TerminalReporter() as reporter:
            sets = list(_sets(folder, data or [], quick=quick))
            found = list(run(list(candidates(out / "encoders")), sets, options=options, reporter=reporter))
        write_board(found, out)
        typer.echo(out / "leaderboard.html")


def candidates(folder: Path) -> Iterator[Candidate]:
    """nano, nano with its language model's blocks off, and one encoder of each family with random weights."""
    from llm2clip.encoders import load_encoder
    from llm2clip.eval.nano_report.random_encoders import random_families
    from llm2clip.eval.runner.run import Candidate

    yield Candidate(label="nano", open=lambda: load_encoder("nano"))
    yield Candidate(label="nano, blocks off", open=partial(_without_blocks, folder / "nano-without-blocks"))
    for family in random_families():
        yield Candidate(label=f"random {family}", open=partial(_random, family, folder / f"random-{family}"))


def write_board(results: list[Result], out: Path) -> None:
    """Write the leaderboard of these results as page, Markdown and CSV."""
    from llm2clip.eval.report.html import render_page
    from llm2clip.eval.report.leaderboard import build_board
    from llm2clip.eval.report.markdown import csv_text, markdown

    board = build_board(results)
    for name, text in (
        ("leaderboard.html", render_page(board)),
        ("leaderboard.md", markdown(board, limit=5)),
        ("leaderboard.csv", csv_text(board)),
    ):
        (out / name).write_text(text, encoding="utf-8")


def _sets(made: Path, own: list[str], *, quick: bool) -> Iterator[RetrievalSet]:
    from llm2clip.eval.commands.arguments import labelled
    from llm2clip.eval.loaders.image_folder import data_languages, load_data
    from llm2clip.eval.nano_report.data import make_missing

    make_missing(made, [EMOJI, SCENES], say=log_stderr)
    wanted = [("emoji", made / EMOJI, _EMOJI_LANGUAGES), ("scenes", made / SCENES, _SCENE_LANGUAGES)]
    wanted += [(name, Path(path), _OWN_LANGUAGES) for name, path in map(labelled, own)]
    for name, place, preferred in wanted:
        there = data_languages(place)
        languages: list[str | None] = [language for language in preferred if language in there]
        languages = languages or [*list(there)[:2]] or [None]
        for language in languages[:2] if quick else languages:
            whole = load_data(place, language=language, name=name or None)
            yield whole.first(100) if quick else whole


def _without_blocks(folder: Path) -> Encoder:
    import shutil

    from llm2clip.eval.nano_report.ablation import without_blocks
    from llm2clip.eval.nano_report.report import encoder_folder

    source = encoder_folder("nano")
    assert source is not None, "nano is shipped with the package"
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return without_blocks(source, folder)


def _random(family: str, folder: Path) -> Encoder:
    from llm2clip.encoders import load_encoder
    from llm2clip.eval.nano_report.random_encoders import make_random

    return load_encoder(make_random(family, folder))


if __name__ == "__main__":
    app()
