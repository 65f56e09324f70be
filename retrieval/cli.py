"""The ``llm2clip-search`` command."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def search(
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY", help="What to look for, in words.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Look for pictures like it; repeatable.")
    ] = None,
    queries_file: Annotated[
        str | None, typer.Option("--queries", metavar="FILE", help="One query per line; - for stdin.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="Hits for each query.")] = 10,
    index: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Default: LLM2CLIP_INDEX, else the index built last, else sample:"),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the one that the index was built with.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per query, each on a line.")
    ] = False,
    as_paths: Annotated[
        bool, typer.Option("--paths", help="Print where the pictures are, one per line.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a self-contained HTML gallery as well.")
    ] = None,
) -> None:
    """Search pictures by meaning, with words in any language the encoder knows, or with pictures."""
    with one_line_errors():
        if not (queries or image or queries_file):
            raise typer.BadParameter("say what to look for: words, --image FILE or --queries FILE")
        if as_json and as_paths:
            raise typer.BadParameter("--json and --paths exclude each other: choose one")
        from llm2clip.retrieval.command import SearchRequest, run

        request = SearchRequest(
            texts=tuple(queries or ()),
            images=tuple(image or ()),
            queries_file=queries_file,
            k=k,
            index=index,
            encoder=encoder,
            output="json" if as_json else "paths" if as_paths else "table",
            html=html,
        )
        run(request)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn expected failures into one line on standard error and exit status 1, Ctrl-C into status 130."""
    from llm2clip.retrieval.answers import printable

    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # Whoever read our output, such as head, has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        print(printable(f"error: {_reason(error)}"), file=sys.stderr)
        raise typer.Exit(1) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def main() -> None:
    """Entry point of ``llm2clip-search``."""
    # A search lives for two seconds and imports a thousand modules. Collecting garbage meanwhile, and taking
    # the modules apart at the end, would add a fifth to that and free nothing that its end does not.
    gc.disable()
    try:
        app()
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
