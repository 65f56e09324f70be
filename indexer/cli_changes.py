"""The commands of ``llm2clip-index`` that change an index, take it apart or explain it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llm2clip.indexer.terminal import one_line_errors

IndexOption = Annotated[
    Path | None,
    typer.Option("--index", metavar="PATH", help="Default: LLM2CLIP_INDEX, else the index built last."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, metavar="N", help="Pictures encoded at once. Default: found by trying."
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option("--encoder", metavar="NAME", help="Where the index's encoder is now, if it was moved."),
]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="FILTER", help="Only pictures of this filter: docs/filters.md."),
]


class ExportFormat(StrEnum):
    """What ``export`` writes."""

    NPY = "npy"
    PARQUET = "parquet"


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (add, update, remove, compact, export, explain, errors):
        app.command()(command)


def add(
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURES...", help="Pictures, folders, or whatever `build` takes."),
    ],
    index: IndexOption = None,
    encoder: EncoderOption = None,
    batch_size: BatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add pictures to an index, or look at some of them again."""
    with one_line_errors():
        from llm2clip.indexer.changing import run_update

        run_update(index, corpora=pictures, encoder=encoder, batch_size=batch_size, as_json=as_json)


def update(
    index: IndexOption = None,
    encoder: EncoderOption = None,
    batch_size: BatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in what is new, changed, moved or gone."""
    with one_line_errors():
        from llm2clip.indexer.changing import run_update

        run_update(index, corpora=None, encoder=encoder, batch_size=batch_size, as_json=as_json)


def remove(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEYS]...", help="Keys or paths, as search shows them.")
    ] = None,
    matching: Annotated[
        str | None, typer.Option("--matching", metavar="PATTERN", help="Also all keys like 'trip/*.png'.")
    ] = None,
    where: WhereOption = None,
    index: IndexOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take pictures out of an index, until they are added by name."""
    with one_line_errors():
        from llm2clip.indexer.changing import run_remove
        from llm2clip.indexer.removing import Selection

        run_remove(index, Selection(keys=keys or (), matching=matching, where=where), as_json=as_json)


def compact(index: IndexOption = None, as_json: JsonOption = False) -> None:
    """Write an index anew, without what was removed."""
    with one_line_errors():
        from llm2clip.indexer.changing import run_compact

        run_compact(index, as_json=as_json)


def export(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; made if it does not exist.")],
    format: Annotated[
        ExportFormat, typer.Option("--format", help="npy: vectors.npy and items.jsonl. parquet: one file.")
    ] = ExportFormat.NPY,
    index: IndexOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write vectors and items to files that other software reads."""
    with one_line_errors():
        from llm2clip.indexer.changing import run_export

        run_export(index, out, format=format.value, as_json=as_json)


def explain(index: IndexOption = None, where: WhereOption = None, as_json: JsonOption = False) -> None:
    """Say what a search of an index would do, and why."""
    with one_line_errors():
        from llm2clip.indexer.changing import run_explain

        run_explain(index, where=where, as_json=as_json)


def errors(
    index: IndexOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture.")] = False,
) -> None:
    """List the pictures that could not be read, with reasons."""
    with one_line_errors():
        from llm2clip.indexer.changing import run_errors

        run_errors(index, as_json=as_json)
