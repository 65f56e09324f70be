"""The ``llm2clip-search`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common import entrypoint
from llm2clip.common.terminal import one_line_errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def search(
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY", help="What to look for, in words.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Look for images like it; repeatable.")
    ] = None,
    queries_file: Annotated[
        str | None, typer.Option("--queries", metavar="FILE", help="One query per line; - for stdin.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="Hits for each query.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(metavar="FILTER", help="Only images such as  time >= '2024' AND width > height"),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Default: LLM2CLIP_INDEX, else the index built last, else sample:"),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the one that the index was built with.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(metavar="DEVICE", help="Where to encode and search: cuda, cuda:1, cpu; auto decides."),
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per query, each on a line.")
    ] = False,
    as_paths: Annotated[
        bool, typer.Option("--paths", help="Print where the images are, one per line.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a self-contained HTML gallery as well.")
    ] = None,
) -> None:
    """Search images by meaning, with words in any language the encoder knows, or with images."""
    with one_line_errors():
        if not (queries or image or queries_file):
            raise typer.BadParameter("say what to look for: words, --image FILE or --queries FILE")
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
