"""Options that several ``llm2clip-eval`` commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

RESULTS = Path("eval-results")
"""Where results are written to and read from by default."""


def option(group: str, help: str, *names: str, **settings: Any) -> Any:  # noqa: ANN401
    """An option that ``--help`` lists in a group."""
    return typer.Option(*names, help=help, rich_help_panel=group, **settings)


EncoderNames = Annotated[
    list[str],
    option(
        "Encoder", "Name or folder of an encoder, or LABEL=NAME; repeatable.", "--encoder", metavar="NAME"
    ),
]
_DTYPES = "auto, float32, float16 or bfloat16; int8 or int4 for LLM2CLIP's language models."
DtypeOption = Annotated[str, option("Encoder", _DTYPES, "--dtype", metavar="DTYPE")]
DeviceOption = Annotated[str, option("Machine", "auto, cpu, cuda, cuda:1, ...", "--device", metavar="DEVICE")]
ProtocolsOption = Annotated[
    list[str] | None,
    option("Data", "Declared protocol, ID or ID:LANGUAGE; repeatable.", "--dataset", metavar="ID"),
]
_DATA = "Your own folder or tar of images with captions, PATH or NAME=PATH; repeatable."
DataOption = Annotated[list[str] | None, option("Data", _DATA, "--data", metavar="PATH")]
_EVERY = "all of a protocol, unnamed in your own data"
LanguagesOption = Annotated[
    list[str] | None,
    option(
        "Data",
        "Language of the captions, or all; repeatable.",
        "--language",
        metavar="CODE",
        show_default=_EVERY,
    ),
]
_FOLDER, _CACHE = "datasets in the data home", "eval-vectors in the data home"
DataFolderOption = Annotated[
    Path | None,
    option(
        "Data",
        "Folder with the files of all protocols.",
        "--data-folder",
        metavar="PATH",
        show_default=_FOLDER,
    ),
]
CacheOption = Annotated[
    Path | None,
    option("Output", "Folder of cached vectors.", "--cache", metavar="PATH", show_default=_CACHE),
]
JsonOption = Annotated[
    Path | None, option("Output", "Also write everything to this file.", "--json", metavar="FILE")
]
ResultsArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RESULTS", help="Result files, or folders of them.", show_default=str(RESULTS)),
]
