"""``llm2clip-train``: make encoders."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common import entrypoint

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

Out = Annotated[Path, typer.Option("--out", help="Run folder: configuration, history, checkpoints, result.")]
Cache = Annotated[Path, typer.Option("--cache", help="Folder that keeps fetched packages and drawn artwork.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; all cores if not given.")]
Device = Annotated[str, typer.Option("--device", help="auto (CUDA if there is any), cpu, cuda or cuda:N.")]
Debug = Annotated[bool, typer.Option("--debug", help="The same recipe with a few steps of each stage.")]


@app.callback()
def _root() -> None:
    """Make encoders: nano, the small LLM2CLIP that ships with this package, from public artwork and annotations."""


@app.command()
def nano(
    out: Out = Path("runs/nano"),
    cache: Cache = Path("runs/cache"),
    device: Device = "auto",
    threads: Threads = None,
    debug: Debug = False,
    stage: Annotated[str, typer.Option(help="Stop after this stage: language, images or all.")] = "all",
) -> None:
    """Train nano: fetch packages, tokenizer, language model, caption contrast, features, alignment, export, evaluation.

    Interrupted, it goes on where it stopped when started again.
    """
    with _one_line_errors():
        from llm2clip.train.core.device import Machine
        from llm2clip.train.recipes import make_nano

        machine = Machine(device=device, threads=threads)
        with _winding_up():
            typer.echo(make_nano(out, cache, machine=machine, debug=debug, stage=stage))


@app.command("nano-english")
def nano_english(
    out: Out = Path("runs/nano-english"),
    cache: Cache = Path("runs/cache"),
    language: Annotated[
        Path, typer.Option(help="Run folder of nano, whose language model the experiment reads with.")
    ] = Path("runs/nano"),
    device: Device = "auto",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """The paper's claim on our ground: stage 2 in English only, beside three controls, each from the same start."""
    with _one_line_errors():
        from llm2clip.train.core.device import Machine
        from llm2clip.train.recipes import make_english

        machine = Machine(device=device, threads=threads)
        with _winding_up():
            typer.echo(make_english(out, cache, language, machine=machine, debug=debug))


@app.command()
def data(
    out: Annotated[Path, typer.Option("--out", help="Folder for the measuring sets.")] = Path("runs/measure"),
    cache: Cache = Path("runs/cache"),
    sample: Annotated[
        Path | None, typer.Option(help="Also write the sample corpus into this folder.")
    ] = None,
) -> None:
    """Write what nano is measured on: OpenMoji images and scenes, as WebDataset tars. Fetches packages by name."""
    with _one_line_errors():
        from llm2clip.train.recipes import make_data

        with _winding_up():
            typer.echo(make_data(out, cache, sample=sample))


@app.command()
def features(
    captions: Annotated[
        list[Path],
        typer.Argument(help="Files of captions (.txt, .jsonl, .tar) or folders of them.", metavar="CAPTIONS"),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the features; one begun before is gone on with.")
    ],
    encoder: Annotated[
        str, typer.Option(help="Encoder or language model that reads them: a name or a folder.")
    ] = "llm2clip-openai-l-14-336",
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="How the language model is held, as for load_encoder.")] = "auto",
    field: Annotated[
        str | None, typer.Option(help="Entry of a JSON object that has the text, or a list of texts.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Write the features of captions to disk, for training against a frozen language model.

    Interrupted or killed, it goes on where it stopped when started again.
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

    return one_line_errors(extra="train", interrupted=": start the same command again to go on")


def _winding_up() -> AbstractContextManager[None]:
    from llm2clip.common.entrypoint import graceful_interrupt

    return graceful_interrupt()


if __name__ == "__main__":
    entrypoint.train()
