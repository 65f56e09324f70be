"""Progress of a run on a terminal: bars while encoding, one line for each result; lines alone where there is none."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from llm2clip.common.terminal import escape_control
from llm2clip.eval.datasets.retrieval_set import RetrievalSet
from llm2clip.eval.results.records import Result


class TerminalReporter:
    """Says on standard error how a run gets on; a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._told: set[str] = set()

    def __enter__(self) -> TerminalReporter:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def begin(self, encoder: str, the_set: RetrievalSet) -> None:
        """Encoding and counting begin."""
        self._clear()
        name = escape_control(f"{encoder} on {the_set.id}")
        if not self._console.is_terminal:
            self._console.print(name, markup=False, soft_wrap=True)
        if the_set.id not in self._told:
            self._told.add(the_set.id)
            for each in the_set.notes:
                self._console.print(
                    escape_control(f"note: {the_set.id}: {each}"), markup=False, soft_wrap=True
                )
        for side, total in (("images", len(the_set.images)), ("texts", len(the_set.captions))):
            what = "images" if side == "images" else "captions"
            self._tasks[side] = self._bars.add_task(f"{name}: {what}", total=total)

    def advance(self, side: str, number: int) -> None:
        """So many more ``images`` or ``texts`` are done."""
        self._bars.advance(self._tasks[side], number)

    def end(self, result: Result, *, fresh: bool) -> None:
        """A result is there."""
        self._clear()
        found = []
        for one in result.directions:
            if at := one.at(1):
                arrow = "T→I" if one.direction == "t2i" else "I→T"
                found.append(f"{arrow} R@1 {100 * at.value:.1f} ({100 * at.low:.1f}–{100 * at.high:.1f})")
        encoded = result.cost.images_encoded + result.cost.texts_encoded if result.cost else 0
        how = f"{encoded:,} encoded" if encoded else "all vectors from disk"
        line = f"{result.encoder.label} on {result.set.id}: {', '.join(found)}; {how}"
        self._console.print(escape_control(line), markup=False, soft_wrap=True)

    def _clear(self) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {}
