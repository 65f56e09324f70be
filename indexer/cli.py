"""The ``llm2clip-index`` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llm2clip.common import entrypoint
from llm2clip.common.terminal import GroupedCommand, make_app, one_line_errors, one_of, renamed
from llm2clip.indexer.cli_manage import delete, list_indexes, move, trust, undo, use
from llm2clip.indexer.cli_options import (
    BatchOption,
    CorpusArgument,
    DtypeOption,
    EncoderOption,
    FrameIntervalOption,
    IndexOption,
    JsonOption,
    NewEncoderOption,
    NewIndexOption,
    WhereOption,
    corpus_option,
    index_option,
    machine_option,
    output_option,
    search_option,
)

if TYPE_CHECKING:
    from llm2clip.indexer.lifecycle.export import Format

_FROM = "Re-encode the images of this index with another encoder."
_EXCLUDE = (
    "Leave out files and folders of a folder, by name or path, such as 'thumbs' or '*/raw/*'; repeatable."
)
_RAM = "Memory budget for search, such as 4GB."
_RECALL = "Target recall@10; 1 means exact search."
_P95 = "Target 95th percentile of the search latency in milliseconds (docs/scaling.md)."
_DEVICE = "Where to encode images and train the ANN index: auto, cpu, cuda or cuda:N."

app = make_app("Build and maintain image indexes.")


@app.command(cls=GroupedCommand, context_settings=renamed({"every": "frame-interval"}))
def build(
    corpus: CorpusArgument = None,
    from_index: Annotated[Path | None, corpus_option("--from", metavar="INDEX", help=_FROM)] = None,
    exclude: Annotated[list[str] | None, corpus_option(metavar="PATTERN", help=_EXCLUDE)] = None,
    every: FrameIntervalOption = None,
    encoder: NewEncoderOption = None,
    index: NewIndexOption = None,
    overwrite: Annotated[
        bool, index_option("--overwrite", help="Replace an existing index, even of another corpus.")
    ] = False,
    ram: Annotated[
        str | None, search_option(metavar="SIZE", help=_RAM, show_default="most of the free memory")
    ] = None,
    recall: Annotated[float | None, search_option(metavar="SHARE", help=_RECALL, show_default="0.95")] = None,
    p95_ms: Annotated[float | None, search_option(metavar="MS", help=_P95, show_default="50")] = None,
    batch_size: BatchOption = None,
    device: Annotated[str, machine_option(metavar="DEVICE", help=_DEVICE)] = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Build an index, or resume an interrupted build."""
    options = {name: value for name, value in locals().items() if name != "from_index"}
    options["exclude"] = tuple(exclude or ())
    with one_line_errors():
        from llm2clip.indexer.commands.build import BuildRequest, run_build

        if from_index is not None:
            from llm2clip.indexer.commands.maintain import run_reencode

            if corpus is not None or encoder is None:
                raise typer.BadParameter("--from INDEX needs --encoder NAME and excludes CORPUS")
            if device != "auto" or dtype != "auto":
                raise typer.BadParameter(
                    "--from chooses device and dtype itself; remove --device and --dtype"
                )
            run_reencode(from_index, index, encoder=encoder, batch_size=batch_size, as_json=as_json)
            return
        if corpus is None:
            raise typer.BadParameter("got no images to index; name a CORPUS, or an index with --from")
        run_build(BuildRequest(**options))


@app.command(cls=GroupedCommand)
def add(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES", help="Images, folders, or any corpus that `build` takes.")
    ],
    index: IndexOption = None,
    encoder: EncoderOption = None,
    batch_size: BatchOption = None,
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Add images to an index, or re-index given ones."""
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_update

        run_update(
            index, corpora=images, encoder=encoder, batch_size=batch_size, dtype=dtype, as_json=as_json
        )


@app.command(cls=GroupedCommand)
def update(
    index: IndexOption = None,
    prune: Annotated[
        bool, corpus_option("--prune", help="Remove the images of a source that is gone or empty.")
    ] = False,
    encoder: EncoderOption = None,
    batch_size: BatchOption = None,
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Sync an index with its sources.

    Adds new images, re-encodes changed ones, renames moved ones and removes deleted ones.
    """
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_update

        run_update(
            index,
            corpora=None,
            encoder=encoder,
            batch_size=batch_size,
            dtype=dtype,
            prune=prune,
            as_json=as_json,
        )


@app.command(cls=GroupedCommand)
def remove(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEYS", help="Keys or paths, as search shows them.")
    ] = None,
    matching: Annotated[
        str | None,
        corpus_option(
            "--matching",
            metavar="PATTERN",
            help="Also remove keys that match a glob pattern, such as 'trip/*.png'.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        corpus_option(
            "--where",
            metavar="FILTER",
            help="Also remove images that match this filter (docs/filters.md).",
        ),
    ] = None,
    dry_run: Annotated[bool, corpus_option("--dry-run", help="Only list what would be removed.")] = False,
    index: IndexOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove images from an index.

    `update` does not add them again; `add` with their paths does, and `undo` brings them back.
    """
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_remove
        from llm2clip.indexer.lifecycle.remove import Selection

        selection = Selection(keys=keys or (), matching=matching, where=where)
        run_remove(index, selection, dry_run=dry_run, as_json=as_json)


app.command("undo", cls=GroupedCommand)(undo)
app.command("move", cls=GroupedCommand)(move)
app.command("list", cls=GroupedCommand)(list_indexes)
app.command("trust", cls=GroupedCommand)(trust)
app.command("use", cls=GroupedCommand)(use)
app.command("delete", cls=GroupedCommand)(delete)


@app.command(cls=GroupedCommand)
def compact(index: IndexOption = None, as_json: JsonOption = False) -> None:
    """Free the disk space of removed images."""
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_compact

        run_compact(index, as_json=as_json)


@app.command(cls=GroupedCommand)
def export(
    out: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Output folder; created if missing.")
    ] = None,
    to: Annotated[
        str | None,
        output_option(
            "--to",
            metavar="ADDRESS",
            help="Instead of a folder: lance://FOLDER/TABLE, postgresql://HOST/DATABASE/TABLE or milvus://HOST/TABLE.",
        ),
    ] = None,
    sync: Annotated[
        bool, output_option("--sync", help="Bring the table at --to up to date; only changes are sent.")
    ] = False,
    recall: Annotated[
        float,
        output_option("--recall", metavar="SHARE", help="Target recall@10 at --to; 1: an exact search."),
    ] = 0.99,
    format: Annotated[
        str,
        output_option(
            "--format",
            metavar="FORMAT",
            help="npy: vectors.npy and items.jsonl; parquet: one file.",
            callback=one_of("npy", "parquet"),
        ),
    ] = "npy",
    index: IndexOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export vectors and metadata to NumPy or Parquet files, or to another engine.

    That then answers searches: give the address of --to wherever an index is named.
    """
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_export, run_export_to

        if (out is None) == (to is None):
            raise typer.BadParameter("expected either FOLDER or --to ADDRESS")
        if to is not None:
            run_export_to(index, to, sync=sync, recall=recall, as_json=as_json)
        elif out is not None:
            run_export(index, out, format=cast("Format", format), as_json=as_json)


@app.command(cls=GroupedCommand)
def explain(index: IndexOption = None, where: WhereOption = None, as_json: JsonOption = False) -> None:
    """Show how an index is searched, and why."""
    with one_line_errors():
        from llm2clip.indexer.commands.show import run_explain

        run_explain(index, where=where, as_json=as_json)


@app.command(cls=GroupedCommand)
def errors(
    index: IndexOption = None,
    as_json: Annotated[bool, output_option("--json", help="Print one JSON object per image.")] = False,
) -> None:
    """List images that could not be indexed, with reasons."""
    with one_line_errors():
        from llm2clip.indexer.commands.show import run_errors

        run_errors(index, as_json=as_json)


@app.command(cls=GroupedCommand)
def info(
    index: IndexOption = None,
    errors: Annotated[
        bool, output_option("--errors", help="Also list images that could not be indexed, with reasons.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show an index's corpus, encoder, size and settings."""
    with one_line_errors():
        from llm2clip.indexer.commands.show import run_errors, run_info

        (run_errors if errors else run_info)(index, as_json=as_json)


@app.command(cls=GroupedCommand)
def verify(
    index: IndexOption = None,
    repair: Annotated[
        bool, index_option("--repair", help="Repair damaged files before verifying (reads no images).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every file and vector of an index.

    The exit status is 1 if anything is damaged.
    """
    with one_line_errors():
        repaired = None
        if repair:
            from llm2clip.indexer.commands.maintain import run_repair

            repaired = run_repair(index, as_json=as_json)
        from llm2clip.indexer.commands.show import run_verify

        if not run_verify(index, as_json=as_json, repaired=repaired):
            raise typer.Exit(1)


@app.command(cls=GroupedCommand)
def encoders(as_json: JsonOption = False) -> None:
    """List encoders with size, memory, languages and quality."""
    with one_line_errors():
        from llm2clip.indexer.commands.show import run_encoders

        run_encoders(as_json=as_json)


if __name__ == "__main__":
    entrypoint.index()
