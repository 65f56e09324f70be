"""What the commands of ``llm2clip-index`` share: which index, loading encoders, progress, printing reports."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2clip.common.terminal import escape_control, graceful_interrupt, log_stderr
from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import IndexNotFoundError
from llm2clip.indexer.core.index_paths import SAMPLE, locate
from llm2clip.indexer.core.results import Progress

if TYPE_CHECKING:
    from llm2clip.indexer.search.index import Index

SHOWN = 20
"""Images or sources that are listed at most."""


def load(name: str, *, device: str = "auto", dtype: str = "auto") -> ImageEncoder:
    """Load an encoder by its name or folder."""
    from llm2clip.encoders import load_encoder

    try:
        return load_encoder(name, device=device, dtype=dtype)
    except ValueError as error:
        if getattr(error, "__notes__", ()):
            error.add_note("meanwhile: llm2clip-index encoders lists those that are on this machine")
        raise


def place_of(index: Path | None) -> Path:
    """The folder of the index that ``--index`` names, else the environment, else the default one."""
    place = locate(index)
    if place.fallback:
        sample = f", or use --index {SAMPLE} (the sample images)" if place.path.exists() else ""
        raise IndexNotFoundError(f"no index was built yet: name one with --index PATH, or build one{sample}")
    return place.path


def open_named(index: Path | None) -> Index:
    """Open the index that ``--index`` names."""
    from llm2clip.indexer.search.index import open_index
    from llm2clip.indexer.storage.index_folder import describe_unfinished

    place = place_of(index)
    try:
        return open_index(place)
    except IndexNotFoundError as error:
        if str(index) != SAMPLE or describe_unfinished(place):
            raise
        raise IndexNotFoundError(
            f"the index of the sample images is not built yet: build it with  llm2clip-index build {SAMPLE}"
        ) from error


@contextmanager
def working(*, interrupted: Callable[[], str]) -> Iterator[Callable[[Progress], None]]:
    """What surrounds long work: a progress bar, notes on downloads, and a message after Ctrl-C."""
    from llm2clip.indexer.corpora.remote_store import on_fetch

    token = on_fetch.set(log_stderr)
    try:
        with graceful_interrupt(), progress_bar() as show, _quiet_decoding():
            yield show
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f": {interrupted()}") from None
    finally:
        on_fetch.reset(token)


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A progress bar on standard error where that is a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[bad]}"),
    )
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("listing", total=None, count="", rate="", bad="")
    shown = False

    def show(progress: Progress) -> None:
        nonlocal shown
        if not shown:  # not before: the user may be asked something first
            bar.start()
            shown = True
        if progress.stage in ("listing", "loading"):
            listing = f"listing: {progress.total:,} images"
            bar.update(task, description=listing if progress.stage == "listing" else "loading the encoder")
            return
        speed = bar.tasks[0].speed
        bar.update(
            task,
            description=progress.stage,
            completed=progress.done,
            total=progress.total,
            count=f"{progress.done:,}/{progress.total:,}",
            rate=f"{speed:,.0f} images/s" if speed else "",
            bad=f"{progress.bad:,} bad" if progress.bad else "",
        )

    try:
        yield show
    finally:
        if shown:
            bar.stop()


@contextmanager
def _quiet_decoding() -> Iterator[None]:
    """Hide warnings of Pillow: images that cannot be read are listed by the build."""
    silent, logger = logging.NullHandler(), logging.getLogger("PIL")
    logger.addHandler(silent)
    try:
        with warnings.catch_warnings():  # of the whole process, so also in the threads that decode
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\b")
            yield
    finally:
        logger.removeHandler(silent)


def print_report(report: Any, *, as_json: bool, lines: Sequence[str], notes: Sequence[str] = ()) -> None:  # noqa: ANN401
    """Print a report as JSON or as lines, and notes on standard error."""
    for note in notes:
        log_stderr(f"note: {note}")
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return
    for line in lines:
        print(escape_control(line))


def images(count: int) -> str:
    """A number of images in words."""
    return f"{count:,} image{'' if count == 1 else 's'}"
