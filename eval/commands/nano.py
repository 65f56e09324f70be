"""The command ``llm2clip-eval nano``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llm2clip.common.files import write_output
from llm2clip.common.terminal import graceful_interrupt, one_line_errors
from llm2clip.eval.commands.options import JsonOption, data_option, encoder_option, output_option
from llm2clip.indexer.records.values import finite

if TYPE_CHECKING:
    from llm2clip.eval.nano_report.report import NanoOptions, NanoReport


def nano(
    *,
    encoder: Annotated[
        str, encoder_option(help="Built-in name or folder of the encoder to measure.", metavar="NAME")
    ] = "nano",
    data: Annotated[
        Path | None,
        data_option(
            help="Folder of openmoji.tar and scenes.tar.",
            metavar="PATH",
            show_default="eval in the data home",
        ),
    ] = None,
    styles: Annotated[
        str, data_option(help="Emoji artworks, separated by commas.", metavar="NAMES")
    ] = "noto,openmoji",
    scenes: Annotated[bool, output_option(help="Measure scenes with long captions.")] = True,
    blocks: Annotated[bool, output_option(help="Measure again with the transformer blocks zeroed.")] = True,
    json_file: JsonOption = None,
) -> None:
    """Print every number of nano's model card.

    Names, free-form queries, scenes, blocks, cost and targets. The evaluation sets are made by llm2clip-train data.
    """
    with one_line_errors(extra="cpu"):
        from llm2clip.common.installation import data_home
        from llm2clip.eval.nano_report.report import NanoOptions

        names = tuple(style.strip() for style in styles.split(",") if style.strip())
        folder = data or data_home() / "eval"
        report_nano(encoder, NanoOptions(data=folder, styles=names, scenes=scenes, blocks=blocks), json_file)


def report_nano(name: str, options: NanoOptions, json_file: Path | None) -> None:
    """Measure an encoder, print the tables on standard output and write the JSON file."""
    from rich.console import Console

    from llm2clip.encoders import load_encoder
    from llm2clip.eval.nano_report import report as nano_report
    from llm2clip.eval.nano_report.controls import encoder_folder

    if json_file:
        _require_writable(json_file)  # before measuring, not after
    console = Console(stderr=True)
    with graceful_interrupt(), console.status("loading the encoder") as status:

        def say(line: str) -> None:
            status.update(line) if console.is_terminal else console.print(line, highlight=False)

        report = nano_report.measure_nano(
            load_encoder(name), options=options, folder=encoder_folder(name), progress=say
        )
    try:
        _print(report)
    finally:
        if json_file:
            write_output(json_file, json.dumps(finite(report.as_json()), ensure_ascii=False, indent=1) + "\n")


def _require_writable(path: Path) -> None:
    """Make the folder of a file and open it for writing; ``OSError`` if that fails. A new file is not left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    path.open("a").close()
    if new:
        path.unlink()


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
