"""The ``llm2clip-index`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm2clip.indexer.cli_changes import IndexOption, JsonOption, register
from llm2clip.indexer.entry import main
from llm2clip.indexer.terminal import one_line_errors

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make an index of pictures, and look after it.",
)


@app.command()
def build(
    corpus: Annotated[
        str | None,
        typer.Argument(
            metavar="CORPUS",
            help="A folder of pictures; a .tar, .zip, .parquet or .arrow, a folder of them, or shards/{00..03}.tar; "
            "a list of pictures (.csv, .tsv, .jsonl, .txt), or - for paths from standard input; a video; a URL of any "
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
        typer.Option(min=1, metavar="N", help="Pictures encoded at once. Default: found by trying."),
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
        bool, typer.Option("--overwrite", help="Build anew, also over the index of other pictures.")
    ] = False,
    from_index: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="INDEX", help="Take the pictures of this index, with another encoder."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Index pictures, or go on with a build that was stopped."""
    with one_line_errors():
        from llm2clip.indexer.command import BuildRequest, run_build

        if from_index is not None:
            from llm2clip.indexer.changing import run_reencode

            if corpus is not None or encoder is None:
                raise typer.BadParameter("--from INDEX needs --encoder NAME, and no CORPUS beside it")
            if device != "auto":
                raise typer.BadParameter("--from decides where to encode by itself: leave --device out")
            run_reencode(from_index, index, encoder=encoder, batch_size=batch_size, as_json=as_json)
            return
        if corpus is None:
            raise typer.BadParameter("which pictures? Name a CORPUS, or an index with --from")
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


register(app)


@app.command()
def info(
    index: IndexOption = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="List the pictures that could not be read, with reasons.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what an index is: its pictures, its encoder, its size."""
    with one_line_errors():
        from llm2clip.indexer.command import run_info

        run_info(index, errors=errors, as_json=as_json)


@app.command()
def verify(
    index: IndexOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="First put right what can be, without reading a picture.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every file, number and vector of an index. Exits with 1 if anything is wrong."""
    with one_line_errors():
        repaired = None
        if repair:
            from llm2clip.indexer.changing import run_repair

            repaired = run_repair(index, as_json=as_json)
        from llm2clip.indexer.command import run_verify

        if not run_verify(index, as_json=as_json, repaired=repaired):
            raise typer.Exit(1)


@app.command()
def encoders(as_json: JsonOption = False) -> None:
    """List all encoders: size, memory, languages, quality."""
    with one_line_errors():
        from llm2clip.indexer.command import run_encoders

        run_encoders(as_json=as_json)


if __name__ == "__main__":
    main()
