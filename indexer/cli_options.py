"""Options that several commands of ``llm2clip-index`` have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common.terminal import one_of

corpus_option, encoder_option, index_option, search_option, output_option, machine_option = (
    partial(typer.Option, rich_help_panel=group)
    for group in ("Corpus", "Encoder", "Index", "Search", "Output", "Machine")
)
"""Options that ``--help`` lists in a group."""

IndexOption = Annotated[
    Path | None,
    index_option(
        "--index",
        metavar="INDEX",
        help="Folder or name of the index; see `llm2clip-index list`.",
        show_default="LLM2CLIP_INDEX, else the default index",
    ),
]
JsonOption = Annotated[bool, output_option("--json", help="Print one JSON object.")]
BatchOption = Annotated[
    int | None,
    machine_option(
        "--batch-size", min=1, metavar="N", help="Images per batch.", show_default="chosen by measurement"
    ),
]
EncoderOption = Annotated[
    str | None,
    encoder_option(
        "--encoder",
        metavar="NAME",
        help="Name or folder of the index's encoder, if it was moved.",
        show_default="the index's encoder",
    ),
]
WhereOption = Annotated[
    str | None,
    corpus_option("--where", metavar="FILTER", help="Only images that match this filter (docs/filters.md)."),
]
DtypeOption = Annotated[
    str,
    machine_option(
        "--dtype",
        metavar="DTYPE",
        help="Precision of the encoder: auto, float32, bfloat16 (faster where supported) or float16.",
        callback=one_of("auto", "float32", "bfloat16", "float16"),
    ),
]

CorpusArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CORPUS",
        help="A folder of images; a .tar, .zip, .parquet or .arrow file, a folder of them, or shards/{00..03}.tar; "
        "a list of images (.csv, .tsv, .jsonl, .txt), or - for paths from standard input; a video; a URL of any "
        "of these; or sample: for the sample images. See docs/corpora.md.",
    ),
]
FrameIntervalOption = Annotated[
    float | None,
    corpus_option(
        "--frame-interval",
        metavar="SECONDS",
        help="Index one frame of each video per interval.",
        show_default="10 for a video; in a folder, videos are skipped",
    ),
]
NewEncoderOption = Annotated[
    str | None,
    encoder_option(
        metavar="NAME",
        help="Name or folder of the encoder; see `llm2clip-index encoders`.",
        show_default="the index's encoder; prompts if there is none",
    ),
]
NewIndexOption = Annotated[
    Path | None, index_option(metavar="PATH", help="Folder of the index.", show_default="one per corpus")
]
