"""The command ``llm2clip-eval prepare``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from llm2clip.common.terminal import escape_control, log_stderr, one_line_errors
from llm2clip.eval.commands.options import DataFolderOption, data_option, output_option
from llm2clip.indexer.records.values import finite


def prepare(
    name: Annotated[
        str | None, typer.Argument(metavar="PROTOCOL", help="Protocol to check.", show_default="list all")
    ] = None,
    *,
    data_folder: DataFolderOption = None,
    language: Annotated[str | None, data_option(help="Check only this language.", metavar="CODE")] = None,
    images: Annotated[bool, data_option("--images", help="Also decode every image.")] = False,
    as_json: Annotated[bool, output_option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """List and check the files that a protocol needs.

    Publishers and licences are listed too. Nothing is downloaded. Exit status 0 if the protocol is complete, else 1.
    """
    with one_line_errors():
        from llm2clip.eval.loaders import check_files
        from llm2clip.eval.loaders.load import default_data

        folder = data_folder or default_data()
        if name is None:
            for protocol, title, there in check_files.summary(folder):
                typer.echo(f"{'present' if there else 'missing':<8} {protocol:<18} {title}")
            log_stderr(
                f"searched {folder}; llm2clip-eval prepare NAME lists what is missing and checks what exists"
            )
            return
        report = check_files.prepare(name, data=folder, language=language, images=images)
        if as_json:
            typer.echo(json.dumps(finite(report.as_json()), ensure_ascii=False, indent=1))
        else:
            typer.echo("\n".join(escape_control(line) for line in check_files.as_text(report)))
    if not report.complete:
        raise typer.Exit(1)
