"""The report of the benchmarks: one line per figure for people, JSON for machines."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from typing import Protocol, TypeVar

from benchmarks.measuring import Row

_WHAT, _VALUE, _AIM = 44, 18, 8
"""Characters of the columns; with the verdict they fill a line of 80."""
_NOTES_FROM = 120
"""Columns of a terminal from which on it is shown how a figure was measured."""


def terminal_columns() -> int | None:
    """Columns of the terminal; ``None`` where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(rows: Sequence[Row], *, columns: int | None) -> str:
    """Lines of at most ``columns`` characters; ``None`` for any number, with all notes."""
    notes = columns is None or columns >= _NOTES_FROM
    lines = with_headings(rows, lambda row, name: _line(row, name, notes=notes))
    aims = [row.met for row in rows if row.met is not None]
    lines.append(f"\n{sum(aims)} of {len(aims)} aims met")
    if not notes and any(row.note for row in rows):
        lines.append(f"How each was measured: in {_NOTES_FROM} columns, or --json.")
    return "\n".join(line[:columns].rstrip() for line in lines)


class Figure(Protocol):
    """Something measured."""

    @property
    def benchmark(self) -> str:
        """The name of a benchmark."""

    @property
    def what(self) -> str:
        """What it measured; what stands before the last colon is shared by several figures."""


F = TypeVar("F", bound=Figure)


def with_headings(figures: Iterable[F], line: Callable[[F, str], str]) -> list[str]:
    """A line for each figure from its indented name, below those of its benchmark and of what it shares with others."""
    lines = []
    for benchmark, of in groupby(figures, key=lambda figure: figure.benchmark):
        lines.append(f"\n{benchmark}")
        for topic, each in groupby(of, key=lambda figure: figure.what.rpartition(": ")[0]):
            if topic:
                lines.append(f"  {topic}")
            indent = "    " if topic else "  "
            lines += [line(figure, indent + figure.what.rpartition(": ")[2]) for figure in each]
    return lines


def _line(row: Row, name: str, *, notes: bool) -> str:
    name = name.ljust(_WHAT)
    value = format_value(row.value, row.unit)
    aim = "" if row.aim is None else f"{'≥' if row.better == 'higher' else '≤'} {row.aim:g}"
    verdict = {True: "met", False: "missed", None: ""}[row.met]
    # A long name takes the blanks of its value.
    room = max(_WHAT + _VALUE - len(name), len(value) + 1)
    shown = f"{name}{value.rjust(room)}  {aim.rjust(_AIM)}  {verdict.ljust(6)}"
    return f"{shown}  {row.note}" if notes else shown


def format_value(value: float, unit: str) -> str:
    """Three significant digits, or whole numbers from 100 on, and the unit; a ratio has none."""
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return number if unit == "ratio" else f"{number} {unit}"


def report(
    rows: Sequence[Row], *, where: Mapping[str, object], settings: Mapping[str, object]
) -> dict[str, object]:
    """The report for machines: rows with their aims, machine, versions and date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks",
        "settings": {name: value for name, value in settings.items() if name not in ("json", "llm2vec")},
        "machine": where,
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }
