"""The ``llm2clip-train`` command."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common import entrypoint
from llm2clip.common.command_line import GroupedCommand, make_app

app = make_app("Train encoders.")

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="PATH",
        help="Run folder: configuration, history, checkpoints and the exported encoder.",
        rich_help_panel="Output",
    ),
]
Cache = Annotated[
    Path,
    typer.Option(
        "--cache",
        metavar="PATH",
        help="Folder for fetched packages and rendered artwork.",
        rich_help_panel="Data",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        help="CPU threads.",
        show_default="all cores",
        rich_help_panel="Machine",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto (CUDA if available), cpu, cuda or cuda:N.",
        rich_help_panel="Machine",
    ),
]


@app.command(cls=GroupedCommand)
def nano(
    cache: Cache = Path("runs/cache"),
    stage: Annotated[
        str,
        typer.Option(
            metavar="STAGE",
            help="Stop after this stage: language, images or all.",
            rich_help_panel="Training",
        ),
    ] = "all",
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Take only a few steps per stage, to test.", rich_help_panel="Training"),
    ] = False,
    out: Out = Path("runs/nano"),
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train, export and evaluate nano.

    The data are public emoji artwork and annotations, fetched as packages.

    An interrupted run resumes when started again.
    """
    with _one_line_errors():
        from llm2clip.train.core.device import Machine
        from llm2clip.train.recipes import make_nano

        machine = Machine(device=device, threads=threads)
        with _winding_up():
            typer.echo(make_nano(out, cache, machine=machine, debug=debug, stage=stage))


@app.command(cls=GroupedCommand)
def data(
    cache: Cache = Path("runs/cache"),
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="Folder for the evaluation sets.",
            rich_help_panel="Output",
            show_default="eval in the data home",
        ),
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Also write the sample corpus to this folder.", rich_help_panel="Output"
        ),
    ] = None,
) -> None:
    """Write nano's evaluation sets.

    OpenMoji images, and scenes with long captions, as WebDataset tar files.
    """
    with _one_line_errors():
        from llm2clip.common.installation import data_home
        from llm2clip.train.recipes import make_data

        with _winding_up():
            typer.echo(make_data(out or data_home() / "eval", cache, sample=sample))


@app.command(cls=GroupedCommand)
def features(
    captions: Annotated[
        list[Path],
        typer.Argument(help="Caption files (.txt, .jsonl, .tar) or folders of them.", metavar="CAPTIONS"),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="PATH",
            help="Folder for the features; an unfinished one is resumed.",
            rich_help_panel="Output",
        ),
    ],
    field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="JSON field with the text or the list of texts.",
            show_default="the first of caption, text, captions, texts",
            rich_help_panel="Data",
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Name or folder of the encoder or language model.", rich_help_panel="Model"
        ),
    ] = "llm2clip-openai-l-14-336",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="Precision of the language model: auto, float32, float16, bfloat16, int8 or int4.",
            rich_help_panel="Model",
        ),
    ] = "auto",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Precompute caption features with a frozen language model.

    An interrupted or killed run resumes when started again.
    """
    with _one_line_errors():
        from llm2clip.train.caption_cache.command import make_features
        from llm2clip.train.core.device import Machine

        machine = Machine(device=device, threads=threads)
        with _winding_up():
            typer.echo(
                make_features(captions, out, encoder=encoder, dtype=dtype, field=field, machine=machine)
            )


def _one_line_errors() -> AbstractContextManager[None]:
    from llm2clip.common.terminal import one_line_errors

    return one_line_errors(extra="train", interrupted=": run the same command again to continue")


def _winding_up() -> AbstractContextManager[None]:
    from llm2clip.common.terminal import graceful_interrupt

    return graceful_interrupt()


if __name__ == "__main__":
    entrypoint.train()
