"""Commands of ``llm2clip-index`` on indexes as a whole: undo, move, list, trust, use, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common.terminal import one_line_errors
from llm2clip.indexer.cli_options import IndexOption, JsonOption, index_option

_NAME = "Name of the index, as `list` shows it, or its folder."
_OLD = "Where the images were: the folder that was indexed, one above it, or a URL."


def undo(index: IndexOption = None, as_json: JsonOption = False) -> None:
    """Undo the last add, update, remove or move.

    Undoing twice redoes it. Image files are not touched, and nothing is encoded. A first build, an overwriting
    build and `compact` cannot be undone.
    """
    with one_line_errors():
        from llm2clip.indexer.commands.manage import run_undo

        run_undo(index, as_json=as_json)


def move(
    old: Annotated[str, typer.Argument(metavar="OLD", help=_OLD)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Where they are now.")],
    index: IndexOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell an index that its image folder was moved.

    For a folder that was renamed or a disk that is mounted elsewhere. Nothing is read or encoded.
    """
    with one_line_errors():
        from llm2clip.indexer.commands.manage import run_move

        run_move(index, old, new, as_json=as_json)


def list_indexes(as_json: JsonOption = False) -> None:
    """List all indexes with size, encoder and corpus."""
    with one_line_errors():
        from llm2clip.indexer.commands.manage import run_list

        run_list(as_json=as_json)


def trust(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="Folder or address of the index.")],
) -> None:
    """Trust an index that was built on another machine.

    Until then its vectors are searched, but no image that it names is read, no URL contacted, and no encoder
    loaded but those of the catalogue. Shows what it names.
    """
    with one_line_errors():
        from llm2clip.indexer.commands.manage import run_trust

        run_trust(index)


def use(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help=_NAME)] = None,
    latest: Annotated[
        bool, index_option("--latest", help="Let the index built last be the default again.")
    ] = False,
) -> None:
    """Choose the default index, or show which it is.

    Commands without --index take it, whatever is built later.
    """
    with one_line_errors():
        from llm2clip.indexer.commands.manage import run_use

        if name is not None and latest:
            raise typer.BadParameter("got NAME and --latest: choose one")
        run_use(name, latest=latest)


def delete(
    name: Annotated[Path, typer.Argument(metavar="NAME", help=_NAME)],
    yes: Annotated[bool, index_option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete an index. Its images stay."""
    with one_line_errors():
        from llm2clip.indexer.commands.manage import run_delete

        run_delete(name, yes=yes, as_json=as_json)
