"""The ``llm2clip-eval`` command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2clip.common import entrypoint
from llm2clip.common.command_line import GroupedCommand, make_app
from llm2clip.common.entrypoint import graceful_interrupt
from llm2clip.common.terminal import one_line_errors
from llm2clip.eval.commands.classify import captions, classify
from llm2clip.eval.commands.prepare import prepare
from llm2clip.eval.commands.run import compare, leaderboard, run

if TYPE_CHECKING:
    from llm2clip.eval.nano_report.report import NanoOptions, NanoReport

app = make_app("Evaluate encoders: retrieval quality and cost.")


@app.command(cls=GroupedCommand)
def nano(
    *,
    encoder: Annotated[str, typer.Option(help="Built-in name or folder of the encoder to measure.")] = "nano",
    data: Annotated[
        Path | None, typer.Option(help="Folder of openmoji.tar and scenes.tar; made when missing.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all numbers here.")] = None,
    styles: Annotated[str, typer.Option(help="Galleries of emoji artwork, by commas.")] = "noto,openmoji",
    scenes: Annotated[bool, typer.Option(help="Measure scenes with long captions.")] = True,
    blocks: Annotated[bool, typer.Option(help="Measure again with the transformer blocks zeroed.")] = True,
) -> None:
    """Print every number of nano's model card: names, free-form queries, scenes, blocks, cost, targets."""
    with one_line_errors(extra="train"):
        options = _options(data, styles=styles, scenes=scenes, blocks=blocks)
        if json_file:
            _require_writable(json_file)  # before the measuring, not after
        report = _measure(encoder, options)
        try:
            _print(report)
        finally:
            if json_file:
                text = json.dumps(report.as_json(), ensure_ascii=False, indent=1)
                json_file.write_text(text + "\n", encoding="utf-8")


for command in (prepare, run, leaderboard, compare, classify, captions):
    app.command(cls=GroupedCommand)(command)


def _require_writable(path: Path) -> None:
    """Make the folder of a file and open it for writing; ``OSError`` if that cannot be. A new file is not left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    path.open("a").close()
    if new:
        path.unlink()


def _options(data: Path | None, *, styles: str, scenes: bool, blocks: bool) -> NanoOptions:
    from llm2clip.common.paths import data_home
    from llm2clip.eval.nano_report.report import NanoOptions

    return NanoOptions(
        data=data or data_home() / "eval",
        styles=tuple(style.strip() for style in styles.split(",") if style.strip()),
        scenes=scenes,
        blocks=blocks,
    )


def _measure(name: str, options: NanoOptions) -> NanoReport:
    from rich.console import Console

    from llm2clip.encoders import load_encoder
    from llm2clip.eval.nano_report.report import encoder_folder, measure_nano

    console = Console(stderr=True)
    with graceful_interrupt(), console.status("loading the encoder") as status:
        encoder = load_encoder(name)

        def say(line: str) -> None:
            status.update(line) if console.is_terminal else console.print(line, highlight=False)

        return measure_nano(encoder, options=options, folder=encoder_folder(name), progress=say)


def _print(report: NanoReport) -> None:
    from rich.console import Console

    from llm2clip.eval.nano_report.tables import nano_tables

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=110)
    identity = report.provenance["encoder"]
    hashes = [f"{part} {identity[f'{part}_sha256'][:12]}" for part in ("weights", "settings")]
    console.print(f"encoder {identity['name']}, {', '.join(hashes)}")
    for subject, files in report.provenance["measured_on"].items():
        hashes = [f"{name} {sha256[:12]}" for name, sha256 in files.items()]
        console.print(f"measured on {subject}: {', '.join(hashes)}")
    for table in nano_tables(report):
        console.print(table)
    for note in report.notes:
        console.print(f"note: {note}")


if __name__ == "__main__":
    entrypoint.evaluate()
