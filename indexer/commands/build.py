"""What ``llm2clip-index`` does once its arguments are read: one call each, then print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from shutil import get_terminal_size
from typing import Any, cast

from llm2clip.common.entrypoint import graceful_interrupt
from llm2clip.common.terminal import escape_control, log_stderr
from llm2clip.indexer.ann.plan import Budget
from llm2clip.indexer.commands import output as console
from llm2clip.indexer.commands.encoder_choice import NANO, NoEncoderError, choose_encoder, source_of
from llm2clip.indexer.commands.encoder_table import table
from llm2clip.indexer.commands.search_budget import TextEncoder, budget_of, make_planner
from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import (
    CorpusError,
    EncoderMismatchError,
    IndexConflictError,
    IndexNotFoundError,
)
from llm2clip.indexer.core.index_paths import (
    INDEX_VARIABLE,
    SAMPLE,
    current_index,
    default_index_path,
    sample_index_path,
    set_current_index,
)
from llm2clip.indexer.core.results import BuildOptions, BuildReport, Progress
from llm2clip.indexer.corpora.open import open_corpus
from llm2clip.indexer.corpora.remote_store import fetch_callback
from llm2clip.indexer.lifecycle.build import build_index
from llm2clip.indexer.planner.plan_index import require_memory
from llm2clip.indexer.records.record import Corpus
from llm2clip.indexer.search.index import Index, open_index
from llm2clip.indexer.storage.index_folder import describe_unfinished, recorded_encoder


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """The arguments of ``llm2clip-index build``."""

    corpus: str
    """What to index."""
    index: Path | None
    """Where to; None for the corpus's own place."""
    encoder: str | None
    """Encoder name or folder; None to find out."""
    batch_size: int | None
    """Images per forward pass; None to find out."""
    overwrite: bool
    """Build anew whatever is there."""
    as_json: bool
    """Print the report as JSON."""
    every: float | None = None
    """Seconds between the frames that are taken of videos."""
    ram: str | None = None
    """Memory that searching may take, as it was given; None: most of what is free."""
    recall: float | None = None
    """Share of the true ten best to be found; None: the usual one."""
    p95_ms: float | None = None
    """Milliseconds for 95 of 100 queries; None: the usual ones."""
    device: str = "auto"
    """Where images are encoded and structures trained: ``cuda``, ``cuda:1``, ``cpu``; ``auto`` decides."""


def run_build(request: BuildRequest) -> None:
    """Build and print.

    Raises:
        ValueError: corpus, index or encoder are at fault; the message is one line with the remedy.
        OSError: something cannot be read or written.
        KeyboardInterrupt: Ctrl-C; its text says what is kept.
    """
    folder = _place(request)
    budget = budget_of(ram=request.ram, recall=request.recall, p95_ms=request.p95_ms)
    done, planned = 0, list[str]()

    def follow(progress: Progress) -> None:
        nonlocal done
        done = progress.done
        show(progress)

    try:
        with graceful_interrupt(), fetch_callback(log_stderr):
            corpus = open_corpus(request.corpus, every=request.every)
            _require_images(corpus)
            name = _choose(request, folder)
            _require_same(request, folder, name)
            if name == NANO and request.corpus != SAMPLE:
                log_stderr("note: nano was trained on emoji and drawn scenes; it is no good at photographs")
            encoder = _load(name) if request.device == "auto" else _load_on(name, request.device)
            with console.progress_bar() as show, console.quiet_decoding():
                planner = make_planner(
                    corpus,
                    cast(TextEncoder, encoder),
                    budget=budget,
                    say=planned.append,
                    device=request.device,
                )
                options = BuildOptions(
                    planner=planner,
                    replan=budget is not None,
                    require=partial(_require_memory, budget),
                    batch_size=request.batch_size,
                    overwrite=request.overwrite,
                    encoder_source=source_of(name),
                    quicker=_quicker(name) if request.device in ("auto", "cpu") else None,
                    on_progress=follow,
                )
                report = build_index(corpus, folder, encoder=encoder, options=options)
    except KeyboardInterrupt:
        kept = (
            f"{done:,} images are kept, the same command goes on from there"
            if done
            else "nothing was done yet"
        )
        raise KeyboardInterrupt(f": {kept}") from None
    for line in planned:
        log_stderr(line)
    _finish(report, as_json=request.as_json)


def _place(request: BuildRequest) -> Path:
    place = request.index
    if place is not None and str(place) == SAMPLE:
        if request.corpus != SAMPLE:
            raise IndexConflictError(
                f"{SAMPLE} is the index of the sample images, got the corpus {request.corpus}: "
                "choose a folder with --index"
            )
        place = None
    return (place or default_index_path(request.corpus)).expanduser().absolute()


def _require_images(corpus: Corpus) -> None:
    """Whether there is anything to index is worth knowing before anybody is asked, or an encoder fetched."""
    if corpus.peek() is None:
        raise CorpusError(corpus.explain_empty())


def _require_memory(budget: Budget | None, images: int, dim: int) -> None:
    if budget is not None:
        require_memory(budget, rows=images, dim=dim)


def _require_same(request: BuildRequest, folder: Path, name: str) -> None:
    """An index of another built-in encoder is told before this one is fetched and loaded."""
    from llm2clip.encoders import list_encoders

    there = None if request.overwrite else recorded_encoder(folder)
    known = {card.name for card in list_encoders()}
    if there != name and {there, name} <= known:
        raise EncoderMismatchError(
            f"{folder} was built with the encoder {there}, got {name}: build with the first, choose another place "
            f"with --index, replace it with --overwrite, or make another beside it with  --from {quote(str(folder))}"
        )


def _choose(request: BuildRequest, folder: Path) -> str:
    try:
        return choose_encoder(request.corpus, folder, told=request.encoder, ask=_asker())
    except NoEncoderError as error:  # a list, and misuse rather than a failure
        for line in f"error: {error}".split("\n"):
            log_stderr(line)
        raise SystemExit(2) from error


def _finish(report: BuildReport, *, as_json: bool) -> None:
    current = False
    if report.corpus != SAMPLE:
        with suppress(OSError):  # the index is built all the same, and the command that is printed names it
            set_current_index(report.path)
            current = True
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False))
    else:
        console.print_build(report, search=console.search_command(report, current=current))


def _load(name: str) -> ImageEncoder:
    from llm2clip.encoders import load_encoder

    return load_encoder(name)


def _load_on(name: str, device: str) -> ImageEncoder:
    from llm2clip.encoders import load_encoder

    return load_encoder(name, device=device)


def _quicker(name: str) -> Callable[[], ImageEncoder] | None:
    """Gives the same encoder in the arithmetic that this processor is quickest in, if that is not its usual one."""
    from llm2clip.encoders import load_encoder
    from llm2clip.encoders.core.dual_encoder import quick_dtype

    dtype = quick_dtype()
    if dtype is None or name.startswith(("st:", "open_clip:")):
        return None
    return lambda: load_encoder(name, dtype=dtype)


def _asker() -> Callable[[str], str] | None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str) -> str:
        print(f"{question}: ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        if not answer:
            raise KeyboardInterrupt
        return answer

    return ask


def _open(index: Path | None) -> Index:
    return _open_sample() if str(index) == SAMPLE else open_index(place_of(index))


def place_of(index: Path | None) -> Path:
    """The folder of the index that is meant."""
    told = os.environ.get(INDEX_VARIABLE)
    if index is None and told:
        index = Path(told)
    if index is not None:
        return sample_index_path() if str(index) == SAMPLE else index.expanduser().absolute()
    last = current_index()
    if last is None:
        sample = f"; --index {SAMPLE} is that of the sample images" if sample_index_path().exists() else ""
        raise IndexNotFoundError(f"no index was built yet: name one with --index PATH, or build one{sample}")
    return last


def _open_sample() -> Index:
    place = sample_index_path()
    try:
        return open_index(place)
    except IndexNotFoundError as error:
        if describe_unfinished(place):
            raise
        raise IndexNotFoundError(
            f"the index of the sample images is not built yet: make it with  llm2clip-index build {SAMPLE}"
        ) from error


def run_info(index: Path | None, *, errors: bool, as_json: bool) -> None:
    """Print what an index is, or the images that could not be read."""
    with _open(index) as opened:
        if errors:
            for error in opened.errors():
                row = {"key": error.key, "stage": error.stage, "reason": error.reason}
                print(
                    json.dumps(row, ensure_ascii=False)
                    if as_json
                    else f"{escape_control(error.key)}\t{escape_control(error.reason)}"
                )
        elif as_json:
            print(json.dumps(asdict(opened.info()), ensure_ascii=False))
        else:
            console.print_info(opened.info())


def run_verify(index: Path | None, *, as_json: bool, repaired: Mapping[str, Any] | None = None) -> bool:
    """Check an index and print what is wrong, as JSON with what was repaired; returns whether nothing is."""
    with _open(index) as opened:
        report = opened.verify()
    if as_json:
        repair = {} if repaired is None else {"repair": repaired}
        print(json.dumps({**asdict(report), "ok": report.ok, **repair}, ensure_ascii=False))
    else:
        console.print_verify(report)
    return report.ok


def run_encoders(*, as_json: bool) -> None:
    """Print the encoders there are."""
    from llm2clip.encoders import list_encoders

    cards = list_encoders()
    if as_json:
        print(json.dumps([asdict(card) for card in cards], ensure_ascii=False))
    else:
        print(table(cards, width=get_terminal_size().columns if sys.stdout.isatty() else None))
