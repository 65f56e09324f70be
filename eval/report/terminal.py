"""The leaderboard in a terminal: as wide as it may be, and no number cut short where it is narrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llm2clip.common.terminal import escape_control
from llm2clip.eval.report.leaderboard import DIRECTIONS, KS, Board, Cell, Row
from llm2clip.eval.report.markdown import (
    COMPARISON_HEADS,
    comparison_lines,
    heading,
    measures,
    row_note,
    set_notes,
    value_heads,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

WIDE = 120
"""Columns from which on both directions stand side by side, with notes in a column of their own."""


def terminal_tables(board: Board, *, limit: int, width: int) -> Iterator[RenderableType]:
    """One table for each set, ours and the best printed ones; one of differences to printed numbers.

    Args:
        board: What to show.
        limit: Printed rows for each set.
        width: Columns of the terminal. Below ``WIDE`` a line is one direction of one encoder, and notes follow.
    """
    from rich.text import Text

    for table in board.tables:
        rows = table.rows(limit=limit)
        known = set_notes(table)
        yield Text(escape_control(heading(table)), style="italic")
        yield from (Text(escape_control(note), style="dim") for note in known)
        if width >= WIDE:
            yield _wide(rows, known)
            continue
        yield _narrow(rows)
        for row in rows:
            if said := row_note(row, known=known):
                yield Text(escape_control(f"{row.label}: {said}"), style="" if row.ours else "dim")
        yield Text("")
    if board.comparisons:
        yield Text("ours and printed, same weights and protocol", style="italic")
        yield from _beside_print(board, width)


def _wide(rows: list[Row], known: list[str]) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    one = RichTable()
    one.add_column("encoder", overflow="fold")
    for head in value_heads():
        one.add_column(head, justify="right", no_wrap=True)
    one.add_column("note", overflow="fold")
    for row in rows:
        cells = [_cell(row.cells.get(measure)) for measure in measures()]
        note = Text(escape_control(row_note(row, known=known)))
        one.add_row(Text(escape_control(row.label)), *cells, note, style=_style(row))
    return one


def _narrow(rows: list[Row]) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    one = RichTable()
    one.add_column("encoder", overflow="fold")
    one.add_column("", no_wrap=True)
    for k in KS:
        one.add_column(f"R@{k}", justify="right", no_wrap=True)
    for row in rows:
        label = escape_control(row.label)
        for direction in DIRECTIONS:
            cells = [row.cells.get((direction, k)) for k in KS]
            if any(cells):
                arrow = "T→I" if direction == "t2i" else "I→T"
                one.add_row(Text(label), arrow, *map(_cell, cells), style=_style(row))
                label = ""
    return one


def _beside_print(board: Board, width: int) -> Iterator[RenderableType]:
    """A table where there is room, else a line for each."""
    from rich.table import Table as RichTable
    from rich.text import Text

    if width < WIDE:
        for who, where, k, ours, printed, difference, band, within, source in comparison_lines(board):
            line = f"{who} on {where}, {k}: {ours}, printed {printed} ({difference}, band {band}: {within}); {source}"
            yield Text(escape_control(line))
        return
    one = RichTable()
    for head in COMPARISON_HEADS:
        one.add_column(head, overflow="fold", no_wrap=head in COMPARISON_HEADS[2:7])
    for words in comparison_lines(board):
        one.add_row(*(Text(escape_control(word)) for word in words))
    yield one


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    if cell.low is None or cell.high is None:
        return f"{cell.value:.1f}"
    return f"{cell.value:.1f}\n{cell.low:.1f}–{cell.high:.1f}"


def _style(row: Row) -> str:
    return "bold" if row.ours else "dim"
