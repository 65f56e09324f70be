"""Options that several ``llm2clip-eval`` commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

RESULTS = Path("eval-results")
"""Where results are written to and read from by default."""


data_option, encoder_option, index_option, output_option, machine_option = (
    partial(typer.Option, rich_help_panel=group)
    for group in ("Data", "Encoder", "Index", "Output", "Machine")
)
"""Options that ``--help`` lists in a group."""

EncoderNames = Annotated[
    list[str],
    encoder_option(
        "--encoder", help="Name or folder of an encoder, or LABEL=NAME; repeatable.", metavar="NAME"
    ),
]
_DTYPES = "auto, float32, bfloat16 or float16; for LLM2CLIP's language models also int8 or int4."
DtypeOption = Annotated[str, encoder_option("--dtype", help=_DTYPES, metavar="DTYPE")]
DeviceOption = Annotated[str, machine_option("--device", help="auto, cpu, cuda or cuda:N.", metavar="DEVICE")]
ProtocolsOption = Annotated[
    list[str] | None,
    data_option("--dataset", help="Declared protocol, ID or ID:LANGUAGE; repeatable.", metavar="ID"),
]
_DATA = "Your own folder or tar of images with captions, PATH or NAME=PATH; repeatable."
DataOption = Annotated[list[str] | None, data_option("--data", help=_DATA, metavar="PATH")]
_EVERY = "all languages of a protocol; untagged captions of your own data"
LanguagesOption = Annotated[
    list[str] | None,
    data_option(
        "--language",
        help="Language of the captions, or all; repeatable.",
        metavar="CODE",
        show_default=_EVERY,
    ),
]
_FOLDER, _CACHE = "datasets in the data home", "eval-vectors in the data home"
DataFolderOption = Annotated[
    Path | None,
    data_option(
        "--data-folder", help="Folder with the files of all protocols.", metavar="PATH", show_default=_FOLDER
    ),
]
CacheOption = Annotated[
    Path | None,
    output_option("--cache", help="Folder of cached vectors.", metavar="PATH", show_default=_CACHE),
]
JsonOption = Annotated[
    Path | None, output_option("--json", help="Also write everything to this file.", metavar="FILE")
]
ResultsArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RESULTS", help="Result files, or folders of them.", show_default=str(RESULTS)),
]
