"""The command ``llm2clip-eval run``."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llm2clip.common.terminal import escape_control, graceful_interrupt, log_stderr, one_line_errors
from llm2clip.eval.commands.options import (
    RESULTS,
    CacheOption,
    DataFolderOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    EncoderNames,
    LanguagesOption,
    ProtocolsOption,
    data_option,
    encoder_option,
    index_option,
    output_option,
)

if TYPE_CHECKING:
    from rich.progress import TaskID

    from llm2clip.eval.commands.arguments import Mode
    from llm2clip.eval.datasets.retrieval_set import RetrievalSet
    from llm2clip.eval.results.records import Result

_LIMIT = "Evaluate only the first N images; the result is tagged +partial."
_PREPROCESSING = "native, or reference to repeat known mistakes of the original code."
_INDEX = "Index over the images: also measure recall through it; repeatable."
_WHERE = "Search the indexes under this filter (docs/filters.md)."
_OUT = "Folder of results, one JSON file per encoder and data set."
_LENGTHS = "Break recall down by caption length, and by beginnings of long captions."
_HUBS = "Measure hubness and recall after corrections: ten more passes over all scores."
_THROUGHPUT = "Also time the encoder: images/s, texts/s, milliseconds per query."


def run(
    *,
    dataset: ProtocolsOption = None,
    data: DataOption = None,
    language: LanguagesOption = None,
    data_folder: DataFolderOption = None,
    limit: Annotated[int | None, data_option(help=_LIMIT, min=1, metavar="N")] = None,
    encoder: EncoderNames,
    dtype: DtypeOption = "auto",
    preprocessing: Annotated[str, encoder_option(help=_PREPROCESSING, metavar="MODE")] = "native",
    index: Annotated[list[Path] | None, index_option(help=_INDEX, metavar="PATH")] = None,
    where: Annotated[str | None, index_option(help=_WHERE, metavar="FILTER")] = None,
    out: Annotated[Path, output_option(help=_OUT, metavar="PATH")] = RESULTS,
    cache: CacheOption = None,
    lengths: Annotated[bool, output_option(help=_LENGTHS)] = True,
    hubs: Annotated[bool, output_option(help=_HUBS)] = True,
    throughput: Annotated[bool, output_option("--throughput", help=_THROUGHPUT)] = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure the recall of encoders on data sets.

    In both directions, with confidence intervals. Vectors are cached: a second run encodes nothing, and an interrupted
    run continues where it stopped.
    """
    with one_line_errors(extra="cpu", interrupted=": run the same command again to continue"):
        from llm2clip.common.files import data_home
        from llm2clip.eval.commands.arguments import candidates, load_sets
        from llm2clip.eval.runner.measure import MeasureOptions
        from llm2clip.eval.runner.run import RunOptions
        from llm2clip.eval.runner.run import run as measure

        if where is not None and not index:
            raise typer.BadParameter("got a filter without --index to search", param_hint="--where")
        mode = {"upstream": "reference"}.get(preprocessing, preprocessing)
        if mode not in ("native", "reference"):
            raise typer.BadParameter(
                f"got {preprocessing!r}, expected native or reference", param_hint="--preprocessing"
            )
        picked = candidates(encoder, device=device, dtype=dtype, preprocessing=cast("Mode", mode))
        options = RunOptions(
            measure=MeasureOptions(hubs=hubs),
            out=out,
            cache=cache or data_home() / "eval-vectors",
            indexes=tuple(index or ()),
            where=where,
            lengths=lengths,
            throughput=throughput,
        )
        out.mkdir(parents=True, exist_ok=True)
        with graceful_interrupt(), TerminalReporter() as reporter:
            found = load_sets(dataset or [], data or [], folder=data_folder, languages=language or [])
            sets = [one.first(limit) if limit else one for one in found]
            for result in measure(picked, sets, options=options, reporter=reporter):
                typer.echo(out / result.file_name)
        log_stderr(f"see them with: llm2clip-eval leaderboard {out}")


class TerminalReporter:
    """Progress of a run on standard error: bars in a terminal, which stop between results, else one line per result."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._noted: set[str] = set()

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def begin(self, encoder: str, dataset: RetrievalSet) -> None:
        """Encoding and counting begin."""
        self._clear()
        name = escape_control(f"{encoder} on {dataset.id}")
        if not self._console.is_terminal:
            self._print(name)
        if dataset.id not in self._noted:
            self._noted.add(dataset.id)
            for note in dataset.notes:
                self._print(f"note: {dataset.id}: {note}")
        for tower, what, total in (
            ("images", "images", len(dataset.images)),
            ("texts", "captions", len(dataset.captions)),
        ):
            self._tasks[tower] = self._bars.add_task(f"{name}: {what}", total=total)
        self._bars.start()

    def advance(self, tower: str, number: int) -> None:
        """So many more ``images`` or ``texts`` are done."""
        self._bars.advance(self._tasks[tower], number)

    def end(self, result: Result) -> None:
        """A result was written."""
        self._clear()
        found = []
        for one in result.directions:
            if at := one.at(1):
                arrow = "T→I" if one.direction == "t2i" else "I→T"
                found.append(f"{arrow} R@1 {100 * at.value:.1f} ({100 * at.low:.1f}–{100 * at.high:.1f})")
        encoded = result.cost.images_encoded + result.cost.texts_encoded if result.cost else 0
        how = f"{encoded:,} encoded" if encoded else "all vectors from the cache"
        self._print(f"{result.encoder.label} on {result.set.id}: {', '.join(found)}; {how}")

    def _print(self, line: str) -> None:
        self._console.print(escape_control(line), markup=False, soft_wrap=True)

    def _clear(self) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {}
        if not self._bars.disable:
            self._bars.stop()
