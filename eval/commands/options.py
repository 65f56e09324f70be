"""Options that several ``llm2clip-eval`` commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RESULTS = Path("eval-results")
"""Where results are written to and read from by default."""

EncoderNames = Annotated[
    list[str],
    typer.Option(
        "--encoder",
        metavar="NAME",
        help="Name or folder of an encoder, or LABEL=NAME; repeatable.",
        rich_help_panel="Encoder",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...", rich_help_panel="Machine"
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="auto, float32, float16 or bfloat16; int8 or int4 for LLM2CLIP's language models.",
        rich_help_panel="Encoder",
    ),
]
ProtocolsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        metavar="ID",
        help="Declared protocol, ID or ID:LANGUAGE; repeatable.",
        rich_help_panel="Data",
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Your own folder or tar of images with captions, PATH or NAME=PATH; repeatable.",
        rich_help_panel="Data",
    ),
]
LanguagesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--language",
        metavar="CODE",
        help="Language of the captions, or all; repeatable.",
        show_default="all of a protocol, unnamed in your own data",
        rich_help_panel="Data",
    ),
]
DataFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--data-folder",
        metavar="PATH",
        help="Folder with the files of all protocols.",
        show_default="datasets in the data home",
        rich_help_panel="Data",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="PATH",
        help="Folder of cached vectors.",
        show_default="eval-vectors in the data home",
        rich_help_panel="Output",
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Also write everything to this file.", rich_help_panel="Output"
    ),
]
ResultsArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RESULTS", help="Result files, or folders of them.", show_default=str(RESULTS)),
]
