"""``llm2clip-index build``: choose the encoder, build, print."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.terminal import escape_control, log_stderr
from llm2clip.indexer.ann.plan import Budget, parse_bytes
from llm2clip.indexer.commands.session import (
    NANO,
    SHOWN,
    NoEncoderError,
    choose_encoder,
    images,
    load,
    source_of,
    working,
)
from llm2clip.indexer.core.encoder_protocol import TextEncoder
from llm2clip.indexer.core.errors import EncoderMismatchError, IndexConflictError, IndexerError
from llm2clip.indexer.core.index_paths import (
    INDEX_VARIABLE,
    SAMPLE,
    current_index,
    default_index_path,
    sample_index_path,
    set_current_index,
)
from llm2clip.indexer.core.results import BuildOptions, BuildReport, Progress, StoredVectors
from llm2clip.indexer.corpora.open import open_corpus
from llm2clip.indexer.lifecycle.build import build_index
from llm2clip.indexer.lifecycle.commit import Planner, rebuild_ann
from llm2clip.indexer.lifecycle.move import indexes_below, moved_from
from llm2clip.indexer.storage.index_folder import items_files, recorded_encoder
from llm2clip.indexer.storage.items_file import query
from llm2clip.indexer.storage.items_schema import NEVER
from llm2clip.indexer.storage.manifest import DEFAULT_PLAN, read_manifest

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder, EncoderInfo

UNPLANNED_ROWS = 50_000
"""Without a budget an index of so many images or fewer is searched exactly: nothing is tried."""
_LOOKED_AT = 20_000
_CAPTIONS = 800


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """The arguments of ``llm2clip-index build``."""

    corpus: str
    index: Path | None
    """None: the default folder of the corpus."""
    encoder: str | None
    """Name or folder; None: that of the index, or the user is asked."""
    batch_size: int | None
    """None: chosen by measurement."""
    overwrite: bool
    as_json: bool
    exclude: tuple[str, ...] = ()
    """Patterns of files and folders that a folder is read without."""
    every: float | None = None
    """Seconds between the frames that are taken of videos."""
    ram: str | None = None
    """Memory budget of a search, such as ``2GB``; None: most of the free memory."""
    recall: float | None = None
    """Target recall@10; None: the default."""
    p95_ms: float | None = None
    """Target 95th percentile of the search latency in milliseconds; None: the default."""
    device: str = "auto"
    dtype: str = "auto"


def run_build(request: BuildRequest) -> None:
    """Build and print."""
    folder = _place(request)
    budget = budget_of(ram=request.ram, recall=request.recall, p95_ms=request.p95_ms)
    done, planned = 0, list[str]()

    def interrupted() -> str:
        return (
            f"{done:,} images are kept; run the same command again to continue"
            if done
            else "nothing was done yet"
        )

    with working(interrupted=interrupted) as show:

        def follow(progress: Progress) -> None:
            nonlocal done
            done = progress.done
            show(progress)

        exclude = request.exclude or _excluded_before(request, folder)
        corpus = open_corpus(request.corpus, every=request.every, exclude=exclude)
        corpus.require_images()  # before an encoder is asked for, or fetched
        name = _choose(request, folder)
        _require_same(request, folder, name)
        show(Progress(stage="loading", done=0, total=0))
        encoder = load(name, device=request.device, dtype=request.dtype)
        options = BuildOptions(
            planner=make_planner(
                folder, cast(TextEncoder, encoder), budget=budget, say=planned.append, device=request.device
            ),
            replan=budget is not None,
            require=partial(_require_memory, budget) if budget is not None else None,
            batch_size=request.batch_size,
            overwrite=request.overwrite,
            encoder_source=source_of(name),
            on_progress=follow,
        )
        report = build_index(corpus, folder, encoder=encoder, options=options)
        if not report.up_to_date and name != NANO:
            report = replace(report, notes=(*report.notes, *_name_note(cast("Encoder", encoder).info)))
    for line in planned:
        log_stderr(line)
    _finish(report, as_json=request.as_json)


def _name_note(info: EncoderInfo) -> list[str]:
    """Whether an encoder that is called like a published one was checked to be it; nothing if it was."""
    from llm2clip.encoders.catalog.entries import check_name

    note = check_name(info).note
    return [note] if note else []


def _place(request: BuildRequest) -> Path:
    place = request.index
    if place is not None and str(place) == SAMPLE:
        if request.corpus != SAMPLE:
            raise IndexConflictError(
                f"{SAMPLE} is the index of the sample images, got the corpus {request.corpus}: "
                "choose a folder with --index"
            )
        place = None
    if place is None:
        place = default_index_path(request.corpus)
        if not place.exists():
            place = _index_of_moved(request.corpus) or place
    return place.expanduser().absolute()


def _excluded_before(request: BuildRequest, folder: Path) -> tuple[str, ...]:
    """The patterns of the index that is there: they stay until others are given."""
    if request.overwrite:
        return ()
    here = os.path.abspath(os.path.expanduser(request.corpus))
    with suppress(IndexerError, OSError):
        for source in read_manifest(folder).sources:
            if source["kind"] == "folder" and source.get("root") == here and "exclude" in source:
                return tuple(source["exclude"].split("\n"))
    return ()


def _index_of_moved(corpus: str) -> Path | None:
    """The index of a folder that was moved after it was indexed, and of which ``move`` was told.

    Raises:
        IndexConflictError: no one told: a new index would embed every image again.
    """
    if not os.path.isdir(os.path.expanduser(corpus)):
        return None
    here = os.path.abspath(os.path.expanduser(corpus))
    for path in indexes_below(here):
        if dict(read_manifest(path).corpus).get("root") == here:
            return path
    if found := moved_from(corpus):
        path, old = found
        raise IndexConflictError(
            f"{corpus} has the images of {old}, which {path} indexes and which is gone. If it was moved:  "
            f"llm2clip-index move {shlex.quote(old)} {shlex.quote(corpus)}  keeps that index; for another, add "
            "--index PATH"
        )
    return None


def _require_same(request: BuildRequest, folder: Path, name: str) -> None:
    """Refuse an index of another built-in encoder before this one is fetched and loaded."""
    there = None if request.overwrite else recorded_encoder(folder)
    if there is None or there == name:
        return
    from llm2clip.encoders import list_encoders

    if {there, name} <= {card.name for card in list_encoders()}:
        raise EncoderMismatchError(
            f"{folder} was built with the encoder {there}, got {name}: build with the first, choose another folder "
            "with --index, replace it with --overwrite, or build another beside it with  --from "
            f"{shlex.quote(str(folder))}"
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
            current = current_index() == Path(report.path)
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False))
    else:
        _print_build(report, search=_search_command(report, current=current))


def _print_build(report: BuildReport, *, search: str) -> None:
    """Print what a build did, where the index is, and how to search it."""
    if report.up_to_date:
        print(f"Up to date: {images(report.items)}, nothing has changed.")
    else:
        per_second = report.embedded / report.seconds if report.seconds else 0.0
        rate = f" ({per_second:,.0f}/s)" if per_second >= 1 and not report.unchanged else ""
        memory = f", memory up to {report.peak_memory / 1e6:,.0f} MB" if report.peak_memory else ""
        print(f"Indexed {images(report.items)}{_changes(report)} in {report.seconds:,.1f} s{rate}{memory}.")
    if report.bad:
        print(f"{images(report.bad)} could not be read:")
        for bad in report.bad_images[:SHOWN]:
            print(escape_control(f"  {bad.key}: {bad.reason}"))
        if report.bad > SHOWN:
            print(f"  and {report.bad - SHOWN:,} more: llm2clip-index info --errors --index {report.path}")
    for each in report.notes:
        log_stderr(f"note: {each}")
    print(escape_control(f"Index:  {report.path}"))
    print(escape_control(f"Search: {search}"))


def _changes(report: BuildReport) -> str:
    """What became of the images of an index that was there, or how many of a resumed build were embedded now."""
    named = {
        "new": report.new,
        "changed": report.changed,
        "moved": report.moved,
        "gone": report.removed,
        "unchanged": report.unchanged,
    }
    if sum(named.values()) > report.new:
        return f": {', '.join(f'{count:,} {what}' for what, count in named.items() if count)};"
    return f", {report.embedded:,} newly embedded," if report.kept else ""


def _search_command(report: BuildReport, *, current: bool) -> str:
    """The command that searches the index, to be copied."""
    if report.corpus == SAMPLE and report.path == str(sample_index_path()):
        return 'llm2clip-search --index sample: "snowy mountains"'
    query = "snowy mountains" if report.corpus == SAMPLE else "a red bicycle in the rain"
    if current and not os.environ.get(INDEX_VARIABLE):
        return f'llm2clip-search "{query}"'
    return f'llm2clip-search --index {shlex.quote(report.path)} "{query}"'


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


def budget_of(*, ram: str | None, recall: float | None, p95_ms: float | None) -> Budget | None:
    """The search budget of the options; None if none was given."""
    if ram is None and recall is None and p95_ms is None:
        return None
    usual = Budget()
    return Budget(
        ram=parse_bytes(ram) if ram is not None else None,
        recall=recall if recall is not None else usual.recall,
        p95_ms=p95_ms if p95_ms is not None else usual.p95_ms,
    )


def _require_memory(budget: Budget, images: int, dim: int) -> None:
    from llm2clip.indexer.planner.plan_index import require_memory

    require_memory(budget, rows=images, dim=dim)


def make_planner(
    folder: Path,
    encoder: TextEncoder,
    *,
    budget: Budget | None,
    say: Callable[[str], None],
    device: str = "auto",
) -> Planner:
    """The planner of a build; captions of its images become tuning queries.

    Without a budget, small indexes are searched exactly.
    """

    def plan(path: Path, vectors: StoredVectors) -> Mapping[str, Any]:
        if budget is None and len(vectors) <= UNPLANNED_ROWS:
            return rebuild_ann(path, vectors, plan=DEFAULT_PLAN)
        from llm2clip.indexer.planner.plan_index import BudgetPlanner

        queries = partial(caption_queries, folder, encoder)
        planner = BudgetPlanner(budget=budget or Budget(), queries=queries, say=say, device=device)
        return planner(path, vectors)

    return plan


def caption_queries(folder: Path, encoder: TextEncoder) -> NDArray[np.float32] | None:
    """Some captions of the index that is being written, encoded; None if it has none. Shape: (n, dim), float32."""
    found = query(
        folder / items_files(folder)[-1],
        f"SELECT caption FROM items WHERE caption > '' AND removed = {NEVER} ORDER BY id LIMIT ?",
        _LOOKED_AT,
    )
    captions = sorted({caption for (caption,) in found if caption.strip()})
    if len(captions) < 2:
        return None
    chosen = np.random.default_rng(0).permutation(len(captions))[:_CAPTIONS]
    return encoder.encode_texts([captions[number] for number in sorted(chosen.tolist())])
