"""The report on nano as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from llm2clip.eval.nano_report.data import Split
from llm2clip.eval.nano_report.measures import KS, Measurement
from llm2clip.eval.nano_report.report import TARGETS, NanoReport

_RECALLS = tuple(f"R@{k}" for k in KS)
_SHORT = {Split.DEVELOPMENT.value: "dev.", Split.TEST.value: "test"}


def nano_tables(report: NanoReport) -> Iterator[Table]:
    """Lay the report out: names per gallery, queries, scenes, cost, targets."""
    tables: dict[str, list[Measurement]] = {"names": [], "queries": [], "scenes": [], "cost": []}
    for one in report.measurements:
        tables[one.table].append(one)
    for style, own in _by_subject(tables["names"]):
        yield _pivot(f"Name to image, {style} artwork, %", "language", own)
    if tables["queries"]:
        title = "Free-form queries of our own list, answered in the first five"
        table = _pivot(title, "language", tables["queries"])
        table.caption = "The target of 44 of 63 is on another list, which is held back."
        table.caption_justify = "left"
        yield table
    for subject, own in _by_subject(tables["scenes"]):
        recalls = [one for one in own if one.metric in _RECALLS]
        yield _pivot(f"Long caption to image, {subject}, %", "caption", recalls)
        yield _values(f"Captions of {subject}", [one for one in own if one.metric not in _RECALLS])
    yield _values("Cost", tables["cost"])
    yield _targets(report)


def _by_subject(measurements: Sequence[Measurement]) -> Iterator[tuple[str, list[Measurement]]]:
    for subject in dict.fromkeys(one.subject for one in measurements):
        yield subject, [one for one in measurements if one.subject == subject]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _pivot(title: str, first: str, measurements: Sequence[Measurement]) -> Table:
    """Rows by metrics, with the blocks on and then off; queries also by artwork."""
    several = measurements[0].table == "queries"
    cells = {(one.row, one.subject, one.metric, one.blocks): one for one in measurements}
    columns = sorted(dict.fromkeys(key[1:] for key in cells), key=lambda column: not column[2])
    heads = [
        ("" if blocks else "blocks off\n") + (f"{subject}\n" if several else "") + _SHORT.get(metric, metric)
        for subject, metric, blocks in columns
    ]
    table = _table(title, first, *heads)
    for row in dict.fromkeys(key[0] for key in cells):
        found = [cells.get((row, *column)) for column in columns]
        form = "{0.value:.0f} {0.unit}" if several else "{0.value:.1f}"
        table.add_row(row, *(form.format(one) if one else "-" for one in found))
    return table


def _values(title: str, measurements: Sequence[Measurement]) -> Table:
    cells = {(f"{one.row}, {one.metric}", one.blocks): f"{one.value:.1f} {one.unit}" for one in measurements}
    off = [False] * any(not blocks for _, blocks in cells)
    table = _table(title, "what", "value", *(["blocks off"] * len(off)))
    for what in dict.fromkeys(what for what, _ in cells):
        table.add_row(what, *(cells.get((what, blocks), "-") for blocks in (True, *off)))
    return table


def _targets(report: NanoReport) -> Table:
    table = _table("Targets, fixed before training", "what", "target", "measured", "met")
    for target in TARGETS:
        found = target.find(report.measurements)
        measured = f"{found.value:.1f}" if found else "-"
        met = "not measured" if found is None else "yes" if target.met(found.value) else "no"
        table.add_row(target.text, f"{'<=' if target.at_most else '>='} {target.bound:g}", measured, met)
    return table
