"""The commands ``llm2clip-eval classify`` and ``captions``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2clip.common.files import counted, write_output
from llm2clip.common.terminal import escape_control, graceful_interrupt, log_stderr, one_line_errors
from llm2clip.eval.commands.options import (
    CacheOption,
    DataFolderOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    EncoderNames,
    JsonOption,
    LanguagesOption,
    ProtocolsOption,
    data_option,
)
from llm2clip.indexer.records.values import finite

if TYPE_CHECKING:
    from llm2clip.eval.runner.zero_shot_run import ClassReport, ClassTask
    from llm2clip.eval.stats.bootstrap import Interval


def classify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with one folder of images per class.")
    ],
    *,
    protocol: Annotated[
        str | None, data_option(help="imagenet-1k-en, imagenet-1k-en-single or imagenet-1k-zh.", metavar="ID")
    ] = None,
    names: Annotated[
        Path | None,
        data_option(
            help="Names of the classes, JSON or text.", metavar="FILE", show_default="names of the folders"
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        data_option(
            help="Templates, one {} in each line.", metavar="FILE", show_default="one built-in template"
        ),
    ] = None,
    language: Annotated[
        str, data_option(help="Language of the built-in template: en or zh.", metavar="CODE")
    ] = "en",
    encoder: EncoderNames,
    dtype: DtypeOption = "auto",
    cache: CacheOption = None,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure zero-shot classification.

    Each image is assigned to the class whose name is nearest.
    """
    with one_line_errors(extra="cpu"):
        from llm2clip.eval.commands.arguments import candidates
        from llm2clip.eval.runner.zero_shot_run import measure_classes

        task = _task(folder, names, templates, language=language, protocol=protocol)
        picked = candidates(encoder, device=device, dtype=dtype)
        with graceful_interrupt(), _bar(len(picked) * len(task.images.images)) as advance:
            reports = [
                measure_classes(one, task, cache=cache or _cache(), progress=advance) for one in picked
            ]
        _show(reports, json_file)


def captions(
    *,
    dataset: ProtocolsOption = None,
    data: DataOption = None,
    language: LanguagesOption = None,
    data_folder: DataFolderOption = None,
    encoder: EncoderNames,
    dtype: DtypeOption = "auto",
    cache: CacheOption = None,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure caption-to-caption retrieval.

    How often two captions of one image find each other. Only texts are encoded.
    """
    with one_line_errors(extra="cpu"):
        from llm2clip.eval.commands.arguments import candidates, load_sets
        from llm2clip.eval.runner.zero_shot_run import measure_captions

        picked = candidates(encoder, device=device, dtype=dtype)
        chosen = list(load_sets(dataset or [], data or [], folder=data_folder, languages=language or []))
        with graceful_interrupt():
            reports = [
                measure_captions(one, each, cache=cache or _cache()) for one in picked for each in chosen
            ]
        _show(reports, json_file)


def _task(
    folder: Path, names: Path | None, templates: Path | None, *, language: str, protocol: str | None
) -> ClassTask:
    from llm2clip.eval.datasets import class_sets
    from llm2clip.eval.runner.zero_shot_run import ClassTask

    if protocol is not None and protocol not in class_sets.PROTOCOLS:
        known = ", ".join(class_sets.PROTOCOLS)
        raise typer.BadParameter(f"got {protocol!r}, expected one of {known}", param_hint="--protocol")
    if language not in class_sets.SINGLE_TEMPLATE and templates is None:
        raise typer.BadParameter(f"got {language!r}, expected en or zh", param_hint="--language")
    declared = class_sets.PROTOCOLS[protocol] if protocol else None
    if declared and (names is None or (templates is None and declared.templates != 1)):
        raise ValueError(
            f"{declared.id} needs --names FILE and --templates FILE. They are not shipped: {declared.files}"
        )
    found = class_sets.read_class_folders(folder)
    called = class_sets.read_class_names(names, folders=found.folders) if names else list(found.folders)
    texts = class_sets.read_templates(templates) if templates else class_sets.SINGLE_TEMPLATE[language]
    title = found.protocol(declared, templates=len(texts)) if declared else class_sets.own_title(folder)
    return ClassTask(protocol=title, images=found, names=called, templates=texts)


@contextmanager
def _bar(images: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("images", total=images)
        yield lambda number: bars.advance(bar, number)


def _cache() -> Path:
    from llm2clip.common.files import data_home

    return data_home() / "eval-vectors"


def _show(reports: Sequence[ClassReport], json_file: Path | None) -> None:
    from llm2clip.eval.runner.zero_shot import Classification

    for report in reports:
        result, who = report.result, escape_control(f"{report.encoder['label']} on {report.task}")
        if isinstance(result, Classification):
            typer.echo(f"{who}: {counted(result.images, 'image')}, {result.classes:,} classes")
            rows = [("top-1", result.top1), ("top-5", result.top5)]
            typer.echo(f"  {'mean over classes':<18} {100 * result.per_class:5.1f} %")
        else:
            typer.echo(f"{who}: {result.images:,} images with two captions")
            rows = [
                ("both ways", result.mean),
                ("first to second", result.first_to_second),
                ("second to first", result.second_to_first),
            ]
        for label, interval in rows:
            typer.echo(f"  {label:<18} {_percent(interval)}")
        for line in report.notes:
            log_stderr(escape_control(line))
    if json_file:
        content = finite([report.as_json() for report in reports])
        write_output(json_file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:5.1f} %  ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
