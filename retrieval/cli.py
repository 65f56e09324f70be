"""The ``llm2clip-search`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common import entrypoint
from llm2clip.common.command_line import GroupedCommand, make_app
from llm2clip.common.terminal import one_line_errors

app = make_app()


@app.command(cls=GroupedCommand)
def search(
    queries: Annotated[list[str] | None, typer.Argument(metavar="QUERY", help="Text to search for.")] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Search for images similar to this one; repeatable.",
            rich_help_panel="Search",
        ),
    ] = None,
    queries_file: Annotated[
        str | None,
        typer.Option(
            "--queries",
            metavar="FILE",
            help="Text file with one query per line; - for standard input.",
            rich_help_panel="Search",
        ),
    ] = None,
    k: Annotated[
        int, typer.Option("-k", min=1, metavar="N", help="Hits per query.", rich_help_panel="Search")
    ] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="FILTER",
            help="Only images that match this filter (docs/filters.md), such as "
            "\"time >= '2024' AND width > height\".",
            rich_help_panel="Search",
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Folder of the index, or sample: for the sample images.",
            show_default="LLM2CLIP_INDEX, else the index built last, else sample:",
            rich_help_panel="Index",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name or folder of the encoder.",
            show_default="the index's encoder",
            rich_help_panel="Encoder",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object per query, each on a line.", rich_help_panel="Output"
        ),
    ] = False,
    as_paths: Annotated[
        bool, typer.Option("--paths", help="Print only the paths of the images.", rich_help_panel="Output")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a self-contained HTML gallery.", rich_help_panel="Output"
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="Where to encode and search: auto, cpu, cuda or cuda:N.",
            rich_help_panel="Machine",
        ),
    ] = "auto",
) -> None:
    """Search images by meaning: by text in any language the encoder knows, or by image."""
    with one_line_errors():
        if not (queries or image or queries_file):
            raise typer.BadParameter("got no query; pass text, --image FILE or --queries FILE")
        if as_json and as_paths:
            raise typer.BadParameter("--json and --paths exclude each other: choose one")
        from llm2clip.retrieval.commands import SearchRequest, run

        request = SearchRequest(
            texts=tuple(queries or ()),
            images=tuple(image or ()),
            queries_file=queries_file,
            k=k,
            where=where,
            index=index,
            encoder=encoder,
            device=device,
            output="json" if as_json else "paths" if as_paths else "table",
            html=html,
        )
        run(request)


if __name__ == "__main__":
    entrypoint.search()
