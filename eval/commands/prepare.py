"""The command ``llm2clip-eval prepare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common.terminal import escape_control, log_stderr, one_line_errors


def prepare(
    name: Annotated[str | None, typer.Argument(help="Protocol; without one, all are listed.")] = None,
    *,
    data_folder: Annotated[
        Path | None, typer.Option(help="Data folder of all protocols; by default in the data home.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Check this language alone.")] = None,
    images: Annotated[bool, typer.Option("--images", help="Also decode every image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say which files a protocol needs, from whom and on what terms, and check those that are there.

    Nothing is ever downloaded. Status 0 if the protocol can be measured under its full name, else 1.
    """
    with one_line_errors():
        from llm2clip.eval.loaders import check_files as preparing
        from llm2clip.eval.loaders.load import default_data

        folder = data_folder or default_data()
        if name is None:
            for each, title, there in preparing.summary(folder):
                typer.echo(f"{'there' if there else 'missing':<8} {each:<18} {title}")
            log_stderr(
                f"looked below {folder}; llm2clip-eval prepare NAME says what is missing and checks what is there"
            )
            return
        report = preparing.prepare(name, data=folder, language=language, images=images)
        if as_json:
            typer.echo(json.dumps(report.as_json(), ensure_ascii=False, indent=1))
        else:
            typer.echo("\n".join(escape_control(line) for line in preparing.as_text(report)))
    if not report.complete:
        raise typer.Exit(1)
