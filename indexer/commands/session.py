"""What the commands of ``llm2clip-index`` share: which index, which encoder, progress, printing reports."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2clip.common.files import counted
from llm2clip.common.terminal import escape_control, graceful_interrupt, log_stderr
from llm2clip.indexer.core.address import SCHEMES, Address
from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import IndexerError, IndexNotFoundError
from llm2clip.indexer.core.index_paths import SAMPLE, locate
from llm2clip.indexer.core.results import Progress
from llm2clip.indexer.storage.index_folder import recorded_encoder

if TYPE_CHECKING:
    from llm2clip.encoders import EncoderCard
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
    if isinstance(place.path, Address) or (index and str(index).partition(":")[0] in SCHEMES):
        raise IndexerError(
            "this command needs the index that was exported, on this machine; an address is searched with "
            "llm2clip-search, llm2clip-serve and Searcher.open"
        )
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
def counting_bar(what: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error where that is a terminal, told how many are done; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


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
    return counted(count, "image")


VARIABLE = "LLM2CLIP_ENCODER"
"""Environment variable with the default encoder of builds."""
NANO = "nano"
"""The encoder that ships with the package."""


class NoEncoderError(IndexerError):
    """No encoder was named, and there is no terminal to ask on."""


def choose_encoder(corpus: str, index: Path, *, told: str | None, ask: Callable[[str], str] | None) -> str:
    """The name for ``load_encoder``: ``told``, or that of the index, or the answer to a question on the terminal."""
    chosen = told or recorded_encoder(index) or (NANO if corpus == SAMPLE else os.environ.get(VARIABLE))
    if not chosen and (better := _better_than_nano()):
        log_stderr(
            f"note: using {NANO}, the small encoder that ships with this package; {better} finds more: --encoder NAME"
        )
        chosen = NANO
    if not chosen:
        if ask is None:
            raise NoEncoderError(
                f"no encoder was named: use --encoder with a name or a folder, or set\n{VARIABLE}. Recommended:\n"
                f"{listed()}"
            )
        chosen = _ask(ask)
    return chosen


def _better_than_nano() -> str | None:
    """The recommended encoder to download, if no encoder but nano is on this machine."""
    from llm2clip.encoders import list_encoders

    cards = [card for card in list_encoders() if card.name != NANO]
    if any(card.available for card in cards):
        return None
    return max((card for card in cards if card.recommended), key=lambda card: card.recommended).name


def source_of(encoder: str) -> str:
    """What the index records of a named encoder: a built-in name as it is, a folder or file as an absolute path."""
    place = os.path.expanduser(encoder)
    if not os.path.exists(place):
        return encoder
    from llm2clip.encoders import list_encoders

    builtin = any(card.name == encoder for card in list_encoders())
    return encoder if builtin else os.path.abspath(place)


def listed() -> str:
    """The recommended encoders, numbered, with languages, size and quality, as wide as the terminal."""
    from shutil import get_terminal_size
    from textwrap import fill

    from llm2clip.encoders import list_encoders

    cards = [card for card in list_encoders() if card.recommended]
    indent, lines = " " * 5, list[str]()
    width = max(40, min(100, get_terminal_size().columns) - 1)
    for number, card in enumerate(sorted(cards, key=lambda card: card.recommended), 1):
        download = f"download: {card.download}" if card.download else "nothing to download"
        lines.append(f"  {number}  {_languages(card)}: {card.name}")
        for text in (card.summary, f"{card.size}, {card.quality}; {download}"):
            lines.append(
                fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
            )
    return "\n".join([*lines, "  all encoders: llm2clip-index encoders"])


def _languages(card: EncoderCard) -> str:
    """The languages of an encoder's queries, in words."""
    names = {"en": "English", "zh": "Chinese", "mul": "many languages"}
    shown = " and ".join(names.get(tag, tag) for tag in card.languages[:3])
    return f"{shown}, reads others" if card.reads_more else shown


def _ask(ask: Callable[[str], str]) -> str:
    from llm2clip.encoders import list_encoders

    cards = list_encoders()
    known = [card.name for card in cards]
    offered = sorted((card for card in cards if card.recommended), key=lambda card: card.recommended)
    names = [card.name for card in offered]
    print(f"Choose an encoder:\n{listed()}", file=sys.stderr)
    while True:
        answer = ask("Number, name or folder").strip()
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        if answer in known or os.path.isdir(os.path.expanduser(answer)):
            return answer
        print(
            f"{answer!r} is not an encoder: expected 1 to {len(names)}, a name or a folder", file=sys.stderr
        )
