"""The ``llm2clip-index`` command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common import entrypoint
from llm2clip.common.terminal import one_line_errors

IndexOption = Annotated[
    Path | None,
    typer.Option("--index", metavar="PATH", help="Default: LLM2CLIP_INDEX, else the index built last."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, metavar="N", help="Images encoded at once. Default: found by trying."
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option("--encoder", metavar="NAME", help="Where the index's encoder is now, if it was moved."),
]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="FILTER", help="Only images of this filter: docs/filters.md."),
]


class ExportFormat(StrEnum):
    """What ``export`` writes."""

    NPY = "npy"
    PARQUET = "parquet"


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make an index of images, and look after it.",
)


@app.command()
def build(
    corpus: Annotated[
        str | None,
        typer.Argument(
            metavar="CORPUS",
            help="A folder of images; a .tar, .zip, .parquet or .arrow, a folder of them, or shards/{00..03}.tar; "
            "a list of images (.csv, .tsv, .jsonl, .txt), or - for paths from standard input; a video; a URL of any "
            "of these; or sample: for ours. See docs/corpora.md.",
        ),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder of the index. Default: one per corpus.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="See `llm2clip-index encoders`. Default: that of the index, else asked."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Images encoded at once. Default: found by trying."),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Take a frame of each video this often. Default: pass videos over."
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory for searching, such as 4GB. Default: most of what is free."
        ),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Of the true ten best, how many to find. Default: 0.95; 1 is exact."
        ),
    ] = None,
    p95_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS", help="Milliseconds for 95 of 100 queries. Default: 50. See docs/scaling.md."
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(metavar="DEVICE", help="Where to encode and train: cuda, cuda:1, cpu; auto decides."),
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Build anew, also over the index of other images.")
    ] = False,
    from_index: Annotated[
        Path | None,
        typer.Option("--from", metavar="INDEX", help="Take the images of this index, with another encoder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Index images, or go on with a build that was stopped."""
    with one_line_errors():
        from llm2clip.indexer.commands.build import BuildRequest, run_build

        if from_index is not None:
            from llm2clip.indexer.commands.maintain import run_reencode

            if corpus is not None or encoder is None:
                raise typer.BadParameter("--from INDEX needs --encoder NAME, and no CORPUS beside it")
            if device != "auto":
                raise typer.BadParameter("--from decides where to encode by itself: leave --device out")
            run_reencode(from_index, index, encoder=encoder, batch_size=batch_size, as_json=as_json)
            return
        if corpus is None:
            raise typer.BadParameter("which images? Name a CORPUS, or an index with --from")
        request = BuildRequest(
            corpus=corpus,
            index=index,
            encoder=encoder,
            batch_size=batch_size,
            overwrite=overwrite,
            as_json=as_json,
            every=every,
            ram=ram,
            recall=recall,
            p95_ms=p95_ms,
            device=device,
        )
        run_build(request)


@app.command()
def add(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Images, folders, or whatever `build` takes."),
    ],
    index: IndexOption = None,
    encoder: EncoderOption = None,
    batch_size: BatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add images to an index, or look at some of them again."""
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_update

        run_update(index, corpora=images, encoder=encoder, batch_size=batch_size, as_json=as_json)


@app.command()
def update(
    index: IndexOption = None,
    encoder: EncoderOption = None,
    batch_size: BatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in what is new, changed, moved or gone."""
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_update

        run_update(index, corpora=None, encoder=encoder, batch_size=batch_size, as_json=as_json)


@app.command()
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
    """Take images out of an index, until they are added by name."""
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_remove
        from llm2clip.indexer.lifecycle.remove import Selection

        run_remove(index, Selection(keys=keys or (), matching=matching, where=where), as_json=as_json)


@app.command()
def compact(index: IndexOption = None, as_json: JsonOption = False) -> None:
    """Write an index anew, without what was removed."""
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_compact

        run_compact(index, as_json=as_json)


@app.command()
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
        from llm2clip.indexer.commands.maintain import run_export

        run_export(index, out, format=format.value, as_json=as_json)


@app.command()
def explain(index: IndexOption = None, where: WhereOption = None, as_json: JsonOption = False) -> None:
    """Say what a search of an index would do, and why."""
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_explain

        run_explain(index, where=where, as_json=as_json)


@app.command()
def errors(
    index: IndexOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image.")] = False,
) -> None:
    """List the images that could not be read, with reasons."""
    with one_line_errors():
        from llm2clip.indexer.commands.maintain import run_errors

        run_errors(index, as_json=as_json)


@app.command()
def info(
    index: IndexOption = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="List the images that could not be read, with reasons.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what an index is: its images, its encoder, its size."""
    with one_line_errors():
        from llm2clip.indexer.commands.build import run_info

        run_info(index, errors=errors, as_json=as_json)


@app.command()
def verify(
    index: IndexOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="First put right what can be, without reading an image.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every file, number and vector of an index. Exits with 1 if anything is wrong."""
    with one_line_errors():
        repaired = None
        if repair:
            from llm2clip.indexer.commands.maintain import run_repair

            repaired = run_repair(index, as_json=as_json)
        from llm2clip.indexer.commands.build import run_verify

        if not run_verify(index, as_json=as_json, repaired=repaired):
            raise typer.Exit(1)


@app.command()
def encoders(as_json: JsonOption = False) -> None:
    """List all encoders: size, memory, languages, quality."""
    with one_line_errors():
        from llm2clip.indexer.commands.build import run_encoders

        run_encoders(as_json=as_json)


if __name__ == "__main__":
    entrypoint.index()
