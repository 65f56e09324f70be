"""Progress of a run on standard error: a bar with loss, speed and time left, or lines where it is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llm2clip.common.terminal import escape_control

if TYPE_CHECKING:
    from types import TracebackType

_LINE_SECONDS = 30.0
_SMOOTHING = 0.95


class Display:
    """Shows the steps of one stage; a context manager. ``shown=False`` shows nothing, for processes but the first."""

    def __init__(self, stage: str, *, total: int, step: int, shown: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, quiet=not shown, soft_wrap=True, highlight=False, markup=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left  {task.fields[note]}"),
        )
        terminal = self._console.is_terminal
        self._progress = Progress(
            *columns, console=self._console, refresh_per_second=2, disable=not (shown and terminal)
        )
        self._task = self._progress.add_task(stage, total=total, completed=step, note="")
        self._stage, self._total, self._lines = stage, total, not terminal
        self._began, self._first, self._said = time.monotonic(), step, time.monotonic()
        self._losses: dict[str, float] = {}
        self._items = 0

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @property
    def items_per_second(self) -> float:
        """Items of this process's steps per second since it began."""
        return self._items / max(time.monotonic() - self._began, 1e-9)

    def step(self, number: int, losses: Mapping[str, float], *, items: int) -> None:
        """Show that ``number`` steps are done."""
        for name, value in losses.items():
            self._losses[name] = _SMOOTHING * self._losses.get(name, value) + (1 - _SMOOTHING) * value
        self._items += items
        note = " ".join(f"{name} {value:.4g}" for name, value in self._losses.items())
        note += f"  {self.items_per_second:,.0f} items/s"
        self._progress.update(self._task, completed=number, note=note)
        now = time.monotonic()
        if self._lines and now - self._said > _LINE_SECONDS:
            self._said = now
            left = (self._total - number) * (now - self._began) / max(number - self._first, 1)
            self.say(f"{self._stage} {number}/{self._total}: {note}, {duration(left)} left")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(escape_control(text))


def duration(seconds: float) -> str:
    """A time for people: ``"45 s"``, ``"12 min"``, ``"3.5 h"``, ``"2.1 days"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
