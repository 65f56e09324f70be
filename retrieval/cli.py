"""The ``llm2clip-search`` command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common import entrypoint
from llm2clip.common.terminal import GroupedCommand, VersionOption, make_app, one_line_errors

search_option, index_option, encoder_option, output_option, machine_option = (
    partial(typer.Option, rich_help_panel=group)
    for group in ("Search", "Index", "Encoder", "Output", "Machine")
)
"""Options that ``--help`` lists in a group."""

Queries = Annotated[
    list[str] | None,
    typer.Argument(metavar="QUERY", help="Text to search for; several words are one query."),
]
_IMAGE = "Search for images similar to this one; with text or another --image, for both together."
_EACH = "Search for each QUERY argument and each --image separately."
_QUERIES_FILE = "Text file with one query per line; - for standard input."
QueriesFile = Annotated[str | None, search_option("--queries", metavar="FILE", help=_QUERIES_FILE)]
Where = Annotated[
    str | None,
    search_option(
        metavar="FILTER",
        help="Only images that match this filter (docs/filters.md), such as \"time >= '2024' AND width > height\".",
    ),
]
_FROM = "Only images of this time or later: a year, month, day or more, such as 2019-06 (docs/filters.md)."
From = Annotated[str | None, search_option("--from", metavar="TIME", help=_FROM)]
_TO = "Only images up to the end of this year, month, day, ..."
To = Annotated[str | None, search_option("--to", metavar="TIME", help=_TO)]
Index = Annotated[
    list[str] | None,
    index_option(
        metavar="INDEX",
        help="Folder or name of the index (see `llm2clip-index list`), or sample: for the sample images; "
        "repeat it to search several of the same encoder together.",
        show_default="LLM2CLIP_INDEX, else the default index, else sample:",
    ),
]
Encoder = Annotated[
    str | None,
    encoder_option(metavar="NAME", help="Name or folder of the encoder.", show_default="the index's encoder"),
]
_JSON = "Print one JSON object per query, each on a line."
_DEVICE = "Where to encode and search: auto, cpu, cuda or cuda:N."

app = make_app()


@app.command(cls=GroupedCommand)
def search(
    queries: Queries = None,
    image: Annotated[list[Path] | None, search_option(metavar="FILE", help=_IMAGE)] = None,
    each: Annotated[bool, search_option("--each", help=_EACH)] = False,
    queries_file: QueriesFile = None,
    k: Annotated[int, search_option("-k", min=1, metavar="N", help="Hits per query.")] = 10,
    where: Where = None,
    begin: From = None,
    end: To = None,
    index: Index = None,
    encoder: Encoder = None,
    as_json: Annotated[bool, output_option("--json", help=_JSON)] = False,
    as_paths: Annotated[bool, output_option("--paths", help="Print only the paths of the images.")] = False,
    html: Annotated[
        Path | None, output_option(metavar="FILE", help="Also write a self-contained HTML gallery.")
    ] = None,
    device: Annotated[str, machine_option(metavar="DEVICE", help=_DEVICE)] = "auto",
    version: VersionOption = False,
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
            each=each,
            queries_file=queries_file,
            k=k,
            where=where,
            begin=begin,
            end=end,
            indexes=tuple(index or ()),
            encoder=encoder,
            device=device,
            output="json" if as_json else "paths" if as_paths else "table",
            html=html,
        )
        run(request)


if __name__ == "__main__":
    entrypoint.search()
