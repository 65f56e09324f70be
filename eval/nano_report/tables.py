"""The report on nano as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.table import Table

from llm2clip.eval.nano_report.data import Split
from llm2clip.eval.nano_report.measures import KS, Measurement
from llm2clip.eval.nano_report.report import TARGETS, NanoReport

_RECALLS = tuple(f"R@{k}" for k in KS)
_SHORT = {Split.DEVELOPMENT.value: "dev.", Split.TEST.value: "test"}


def nano_tables(report: NanoReport) -> Iterator[Table]:
    """Lay the report out: names per gallery, queries, scenes, cost, targets."""
    off = any(not one.blocks for one in report.measurements)
    names = [one for one in report.measurements if one.table == "names"]
    for style in dict.fromkeys(one.subject for one in names):
        title = f"Name to image, {style} artwork, %"
        yield _recall_table(title, "language", [one for one in names if one.subject == style], off=off)
    queries = [one for one in report.measurements if one.table == "queries"]
    if queries:
        yield _queries_table(queries, off=off)
    scenes = [one for one in report.measurements if one.table == "scenes"]
    for subject in dict.fromkeys(one.subject for one in scenes):
        own = [one for one in scenes if one.subject == subject]
        recalls = [one for one in own if one.metric in _RECALLS]
        yield _recall_table(f"Long caption to image, {subject}, %", "caption", recalls, off=off)
        yield _value_table(
            f"Captions of {subject}", [one for one in own if one.metric not in _RECALLS], off=off
        )
    yield _value_table("Cost", [one for one in report.measurements if one.table == "cost"], off=False)
    yield _target_table(report)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _recall_table(title: str, first: str, measurements: Iterable[Measurement], *, off: bool) -> Table:
    columns = _RECALLS + (tuple(f"blocks off\n{metric}" for metric in _RECALLS) if off else ())
    table = _table(title, first, *columns)
    cells = {(one.row, one.metric, one.blocks): one.value for one in measurements}
    for row in dict.fromkeys(row for row, _, _ in cells):
        keys = [
            (row, metric, blocks) for blocks in ((True, False) if off else (True,)) for metric in _RECALLS
        ]
        table.add_row(row, *(f"{cells[key]:.1f}" if key in cells else "-" for key in keys))
    return table


def _queries_table(measurements: Iterable[Measurement], *, off: bool) -> Table:
    cells = {(one.row, one.subject, one.metric, one.blocks): one for one in measurements}
    columns = dict.fromkeys((subject, metric, blocks) for _, subject, metric, blocks in cells)
    shown = sorted(columns, key=lambda column: (not column[2], list(columns).index(column)))
    headers = [
        ("" if blocks else "blocks off\n") + f"{subject}\n{_SHORT.get(metric, metric)}"
        for subject, metric, blocks in shown
    ]
    table = _table("Free-form queries of our own list, answered in the first five", "language", *headers)
    table.caption = "The target of 44 of 63 is on another list, which is held back."
    table.caption_justify = "left"
    for row in dict.fromkeys(row for row, _, _, _ in cells):
        found = [cells[row, *column] for column in shown]
        table.add_row(row, *(f"{one.value:.0f} {one.unit}" for one in found))
    return table


def _value_table(title: str, measurements: Iterable[Measurement], *, off: bool) -> Table:
    cells = {(one.row, one.metric, one.blocks): one for one in measurements}
    table = _table(title, "what", *(("value", "blocks off") if off else ("value",)))
    for row, metric in dict.fromkeys((row, metric) for row, metric, _ in cells):
        values = [cells.get((row, metric, blocks)) for blocks in ((True, False) if off else (True,))]
        table.add_row(f"{row}, {metric}", *(f"{one.value:.1f} {one.unit}" if one else "-" for one in values))
    return table


def _target_table(report: NanoReport) -> Table:
    table = _table("Targets, fixed before training", "what", "target", "measured", "met")
    for target in TARGETS:
        found = target.find(report.measurements)
        sign = "<=" if target.at_most else ">="
        measured = f"{found.value:.1f}" if found else "-"
        met = "not measured" if found is None else "yes" if target.met(found.value) else "no"
        table.add_row(target.text, f"{sign} {target.bound:g}", measured, met)
    return table
