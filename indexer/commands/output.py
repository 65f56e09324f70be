"""What the ``llm2clip-index`` command prints: progress on standard error, results on standard output."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm2clip.common.files import format_bytes
from llm2clip.common.terminal import escape_control, log_stderr
from llm2clip.indexer.core.index_paths import INDEX_VARIABLE, SAMPLE, sample_index_path
from llm2clip.indexer.core.results import BuildReport, IndexInfo, Progress

if TYPE_CHECKING:
    from llm2clip.indexer.search.verify import VerifyReport

_SHOWN = 20


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A progress bar on standard error where that is a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[bad]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("looking", total=None, rate="", bad="")

        def show(progress: Progress) -> None:
            if progress.stage == "listing":
                bar.update(task, description=f"looking: {progress.total:,} images")
                return
            speed = bar.tasks[0].speed
            bar.update(
                task,
                description=progress.stage,
                completed=progress.done,
                total=progress.total,
                rate=f"{speed:,.0f} images/s" if speed else "",
                bad=f"{progress.bad:,} bad" if progress.bad else "",
            )

        yield show


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Keep what Pillow says of odd images off the terminal: those that cannot be read are listed by the build."""
    silent, logger = logging.NullHandler(), logging.getLogger("PIL")
    logger.addHandler(silent)
    try:
        with warnings.catch_warnings():  # of the whole process, so also in the threads that decode
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\b")
            yield
    finally:
        logger.removeHandler(silent)


def print_build(report: BuildReport, *, search: str) -> None:
    """Print what a build did, where the index is, and how to search it."""
    if report.up_to_date:
        print(f"Up to date: {_images(report.items)}, nothing has changed.")
    else:
        rate = f" ({report.embedded / report.seconds:,.0f}/s)" if report.embedded else ""
        kept = f", {report.embedded:,} of them embedded now," if report.kept else ""
        memory = f", memory up to {report.peak_memory / 1e6:,.0f} MB" if report.peak_memory else ""
        print(f"Indexed {_images(report.items)}{kept} in {report.seconds:,.1f} s{rate}{memory}.")
    if report.bad:
        print(f"{_images(report.bad)} could not be read:")
        for bad in report.bad_images[:_SHOWN]:
            print(escape_control(f"  {bad.key}: {bad.reason}"))
        if report.bad > _SHOWN:
            print(f"  and {report.bad - _SHOWN:,} more: llm2clip-index info --errors --index {report.path}")
    for each in report.notes:
        log_stderr(f"note: {each}")
    print(escape_control(f"Index:  {report.path}"))
    print(escape_control(f"Search: {search}"))


def search_command(report: BuildReport, *, current: bool) -> str:
    """The command that searches the index just built, ready to be copied."""
    import shlex

    if report.path == str(sample_index_path()):
        return 'llm2clip-search --index sample: "an animal with a long neck"'
    query = "an animal with a long neck" if report.corpus == SAMPLE else "a red bicycle in the rain"
    if current and not os.environ.get(INDEX_VARIABLE):
        return f'llm2clip-search "{query}"'
    return f'llm2clip-search --index {shlex.quote(report.path)} "{query}"'


def print_info(info: IndexInfo) -> None:
    """Print what an index is."""
    rows = {
        "index": info.path,
        "images": f"{info.items:,}" + (f" ({info.bad:,} more could not be read)" if info.bad else ""),
        "corpus": _sources(info),
        "encoder": f"{info.encoder['name']} (weights {str(info.encoder.get('weights_sha256', '?'))[:12]}...)",
        "vectors": f"{info.dim} numbers each, float16; files: {info.segments}; search: {info.ann}",
        "faiss": info.faiss,
        "size": format_bytes(info.bytes),
        "built": f"{info.created} by {info.written_by}, generation {info.generation}",
    }
    for name, value in rows.items():
        for line in value.split("\n"):
            print(escape_control(f"{name:<9} {line}"))
            name = ""


def _sources(info: IndexInfo) -> str:
    shown = [" in ".join(filter(None, [each["spec"], each.get("root")])) for each in info.sources]
    more = f"\nand {len(shown) - _SHOWN:,} more" if len(shown) > _SHOWN else ""
    return "\n".join(shown[:_SHOWN]) + more


def print_verify(report: VerifyReport) -> None:
    """Print what verifying found."""
    for each in report.notes:
        log_stderr(f"note: {each}")
    if report.ok:
        print(escape_control(f"{report.path} is whole: {report.files} files, {_images(report.items)}"))
    for problem in report.problems:
        print(escape_control(problem))


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"
