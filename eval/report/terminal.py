"""The leaderboard in a terminal: side by side where it is wide, one line per direction where it is narrow."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llm2clip.common.terminal import escape_control
from llm2clip.eval.report.leaderboard import DIRECTIONS, KS, Board, Row
from llm2clip.eval.report.markdown import (
    ARROWS,
    COMPARISON_HEADS,
    COST_HEADS,
    MEASURES,
    VALUE_HEADS,
    cell_text,
    comparison_lines,
    cost_cells,
    cost_note,
    cost_of,
    heading,
    row_note,
    set_notes,
)

WIDE = 120
"""Columns from which on both directions stand side by side, with notes in a column of their own."""
_INTERVAL = "\n{}–{}"


def terminal_tables(board: Board, *, limit: int, width: int) -> Iterator[RenderableType]:
    """One table per data set, ours and the best published rows; one of differences to published numbers."""
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
            if said := "; ".join(filter(None, (cost_note(row), row_note(row, known=known)))):
                yield Text(escape_control(f"{row.label}: {said}"), style="" if row.ours else "dim")
        yield Text("")
    if board.comparisons:
        yield Text("ours and published, same weights and protocol", style="italic")
        yield from _comparisons(board, width)


def _wide(rows: list[Row], known: list[str]) -> Table:
    costs = COST_HEADS if any(map(cost_of, rows)) else ()
    table = Table()
    table.add_column("encoder", overflow="fold")
    for head in (*VALUE_HEADS, *costs):
        table.add_column("\n".join(head.split(" ")), justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for row in rows:
        cells = [cell_text(row.cells.get(measure), _INTERVAL) for measure in MEASURES]
        cells += cost_cells(row) if costs else ()
        note = Text(escape_control(row_note(row, known=known)))
        table.add_row(Text(escape_control(row.label)), *cells, note, style=_style(row))
    return table


def _narrow(rows: list[Row]) -> Table:
    table = Table()
    table.add_column("encoder", overflow="fold")
    table.add_column("", no_wrap=True)
    for k in KS:
        table.add_column(f"R@{k}", justify="right", no_wrap=True)
    for row in rows:
        label = escape_control(row.label)
        for direction in DIRECTIONS:
            cells = [row.cells.get((direction, k)) for k in KS]
            if any(cells):
                texts = [cell_text(cell, _INTERVAL) for cell in cells]
                table.add_row(Text(label), ARROWS[direction], *texts, style=_style(row))
                label = ""
    return table


def _comparisons(board: Board, width: int) -> Iterator[RenderableType]:
    """A table where there is room, else a line for each."""
    if width < WIDE:
        for who, where, k, ours, theirs, difference, tolerance, within, source in comparison_lines(board):
            apart = f"{difference}, tolerance {tolerance}: {within}"
            line = f"{who} on {where}, {k}: {ours}, published {theirs} ({apart}); {source}"
            yield Text(escape_control(line))
        return
    table = Table()
    for head in COMPARISON_HEADS:
        table.add_column(head, overflow="fold", no_wrap=head in COMPARISON_HEADS[2:7])
    for words in comparison_lines(board):
        table.add_row(*(Text(escape_control(word)) for word in words))
    yield table


def _style(row: Row) -> str:
    return "bold" if row.ours else "dim"
