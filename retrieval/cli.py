"""The ``llm2clip-search`` command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llm2clip.common import entrypoint
from llm2clip.common.terminal import GroupedCommand, VersionOption, make_app, one_line_errors, one_of

if TYPE_CHECKING:
    from llm2clip.retrieval.output.printing import Output
    from llm2clip.retrieval.output.thumbnails import Thumbnails
    from llm2clip.retrieval.ranking.options import By, Sort

_BYS = ("auto", "image", "caption", "all")
_SORTS = ("score", "date")
_THUMBNAILS = ("auto", "never", "kitty", "iterm", "sixel", "blocks")

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
_LEAST = "Only images of at least this confidence, 0 to 1, and exit code 1 if there is none; try 0.7."
_BY = "What texts are compared with: image, caption (words that came with it), all, or auto (docs/searching.md)."
_SORT = "score, or date: newest first."
_DUPLICATES = "Show copies of an image too, which are folded into one hit otherwise."
_DIVERSE = "Prefer images that differ from those before them."
_PAGE = "Number of the page, from 1."
_CURSOR = "From the page before (--json), to go on after it even if the index has changed."
_EXPLAIN = "Say how the query was read and answered."
Index = Annotated[
    list[str] | None,
    index_option(
        metavar="INDEX",
        help="Folder, name (see `llm2clip-index list`) or address of the index, or sample: for the sample images; "
        "repeat it to search several of the same encoder together.",
        show_default="LLM2CLIP_INDEX, else the default index, else sample:",
    ),
]
Encoder = Annotated[
    str | None,
    encoder_option(metavar="NAME", help="Name or folder of the encoder.", show_default="the index's encoder"),
]
_INTERACTIVE = "Look through the images in the terminal, with keys; prints what was selected at the end."
_JSON = "Print one JSON object per query, each on a line."
_JSONL = "Print one JSON object per hit, each on a line."
_TSV = "Print one line per hit, with columns between tabs and their names first."
_PATHS = "Print only the paths of the images."
_NULL = "Print only their paths, each ended by a null byte, as xargs -0 reads them."
_PICTURES = (
    "Pictures below the table or of --interactive: auto, never, kitty, iterm, sixel, blocks (24-bit colour)."
)
Thumbs = Annotated[
    str | None,
    output_option(
        metavar="HOW",
        help=_PICTURES,
        callback=one_of(*_THUMBNAILS),
        show_default="never; with --interactive auto",
    ),
]
_HTML = "Also write a self-contained HTML gallery."
_COPY = "Also copy the images of the hits to this new or empty folder."
_SYMLINK = "Also make links to them in this new or empty folder."
_DEVICE = "Where to encode and search: auto, cpu, cuda or cuda:N."
_NO_DAEMON = (
    "Search in this process, without the daemon that keeps the encoder in memory (docs/searching.md)."
)
_DAEMON = "status or stop: show the daemon of this user and installation, or end it."
DaemonAction = Annotated[
    str | None, machine_option("--daemon", metavar="ACTION", help=_DAEMON, callback=one_of("status", "stop"))
]

app = make_app()


@app.command(cls=GroupedCommand)
def search(
    context: typer.Context,
    queries: Queries = None,
    image: Annotated[list[Path] | None, search_option(metavar="FILE", help=_IMAGE)] = None,
    each: Annotated[bool, search_option("--each", help=_EACH)] = False,
    queries_file: QueriesFile = None,
    k: Annotated[int, search_option("-k", min=1, metavar="N", help="Hits per query.")] = 10,
    where: Where = None,
    begin: From = None,
    end: To = None,
    min_confidence: Annotated[float | None, search_option(min=0, max=1, metavar="SHARE", help=_LEAST)] = None,
    by: Annotated[str, search_option(metavar="WHAT", help=_BY, callback=one_of(*_BYS))] = "auto",
    sort: Annotated[str, search_option(metavar="ORDER", help=_SORT, callback=one_of(*_SORTS))] = "score",
    duplicates: Annotated[bool, search_option("--duplicates", help=_DUPLICATES)] = False,
    diverse: Annotated[bool, search_option("--diverse", help=_DIVERSE)] = False,
    page: Annotated[int, search_option(min=1, metavar="N", help=_PAGE)] = 1,
    cursor: Annotated[str | None, search_option(metavar="CURSOR", help=_CURSOR)] = None,
    explain: Annotated[bool, search_option("--explain", help=_EXPLAIN)] = False,
    index: Index = None,
    encoder: Encoder = None,
    interactive: Annotated[bool, output_option("--interactive", "-i", help=_INTERACTIVE)] = False,
    as_json: Annotated[bool, output_option("--json", help=_JSON)] = False,
    as_jsonl: Annotated[bool, output_option("--jsonl", help=_JSONL)] = False,
    as_tsv: Annotated[bool, output_option("--tsv", help=_TSV)] = False,
    as_paths: Annotated[bool, output_option("--paths", help=_PATHS)] = False,
    null: Annotated[bool, output_option("--null", "-0", help=_NULL)] = False,
    thumbnails: Thumbs = None,
    html: Annotated[Path | None, output_option(metavar="FILE", help=_HTML)] = None,
    copy_to: Annotated[Path | None, output_option(metavar="FOLDER", help=_COPY)] = None,
    symlink_to: Annotated[Path | None, output_option(metavar="FOLDER", help=_SYMLINK)] = None,
    device: Annotated[str, machine_option(metavar="DEVICE", help=_DEVICE)] = "auto",
    no_daemon: Annotated[bool, machine_option("--no-daemon", help=_NO_DAEMON)] = False,
    daemon: DaemonAction = None,
    verbose: Annotated[bool, machine_option("--verbose", help="Say why no daemon is used.")] = False,
    version: VersionOption = False,
) -> None:
    """Search images by meaning: by text in any language the encoder knows, or by image."""
    with one_line_errors():
        if daemon is not None:
            from llm2clip.retrieval.daemon_status import manage_daemon

            manage_daemon(daemon)
            return
        if not (queries or image or queries_file or interactive):
            raise typer.BadParameter("got no query; pass text, --image FILE or --queries FILE")
        for name, asked in {
            "--each": each,
            "--queries": bool(queries_file),
            "--page": page > 1,
            "--cursor": bool(cursor),
        }.items():
            _only_one({"--interactive": interactive, name: asked})
        _only_one({"--sort date": sort == "date", "--diverse": diverse})
        _only_one({"--cursor": cursor is not None, "--page": page > 1})
        outputs = {"json": as_json, "jsonl": as_jsonl, "tsv": as_tsv, "paths": as_paths, "null": null}
        _only_one({f"--{name}": asked for name, asked in outputs.items()})
        if not interactive:
            for name, asked in outputs.items():
                _only_one({"--thumbnails": thumbnails not in (None, "never"), f"--{name}": asked})
        from llm2clip.retrieval.commands import SearchRequest, run
        from llm2clip.retrieval.ranking.options import SearchOptions

        request = SearchRequest(
            texts=tuple(queries or ()),
            images=tuple(image or ()),
            each=each,
            queries_file=queries_file,
            options=SearchOptions(
                k=k,
                where=where,
                min_confidence=min_confidence,
                by=cast("By", by),
                sort=cast("Sort", sort),
                fold=not duplicates,
                diverse=diverse,
                page=page,
                cursor=cursor,
                explain=explain,
            ),
            begin=begin,
            end=end,
            indexes=tuple(index or ()),
            encoder=encoder,
            device=device,
            output=cast("Output", next((name for name, asked in outputs.items() if asked), "table")),
            interactive=interactive,
            thumbnails=cast("Thumbnails", thumbnails or ("auto" if interactive else "never")),
            html=html,
            copy_to=copy_to,
            symlink_to=symlink_to,
        )
        if not run(request, searchers=context.obj):
            raise typer.Exit(1)


def _only_one(options: dict[str, bool]) -> None:
    """Refuse a command line with two of these options."""
    given = [name for name, asked in options.items() if asked]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} exclude each other: choose one")


if __name__ == "__main__":
    entrypoint.search()
