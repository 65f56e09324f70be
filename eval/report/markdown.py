"""The leaderboard as Markdown and CSV, and the words that terminal tables share with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable

from llm2clip.common.terminal import escape_control
from llm2clip.eval.report.leaderboard import (
    DIRECTIONS,
    KS,
    Board,
    Cell,
    LanguageRow,
    Measure,
    Row,
    Table,
    title_of,
)
from llm2clip.eval.results.published_numbers import Comparison, licence_note
from llm2clip.eval.results.records import Result

_MARKS = str.maketrans({"|": "\\|", "<": "&lt;"})
"""What would end a cell of Markdown, or begin HTML in it."""
TIE_GAP = 0.001
"""Share by which ties may move a recall before a table says so."""
COMPARISON_HEADS = ["encoder", "set", "R@k", "ours", "printed", "difference", "band", "within", "source"]
"""Of the table that puts ours beside printed numbers."""
_CSV_FIELDS = [
    "kind",
    "dataset",
    "language",
    "model",
    "hf_id",
    "direction",
    "k",
    "value",
    "low",
    "high",
    "expected",
    "optimistic",
    "queries",
    "gallery",
    "median_rank",
    "exact",
    "overlap",
    "milliseconds",
    "status",
    "source",
    "encoder_key",
    "dtype",
    "preprocessing",
    "code",
    "date",
]


def markdown(board: Board, *, limit: int) -> str:
    """The same as Markdown, with provenance and what the numbers mean."""
    parts = ["# Leaderboard", ""]
    parts += [
        "Recall in percent, ties counted against us, with 95 % intervals drawn over images; printed numbers come "
        "without. **Bold** was measured here. ≈ cannot be told from the best measured here.",
        "",
    ]
    for table in board.tables:
        known = set_notes(table)
        parts += [f"## {heading(table)}", ""]
        parts += [f"{_md(note)}\n" for note in known]
        parts += _md_table(
            ["encoder", *value_heads(), "note"],
            (
                [
                    f"**{row.label}**" if row.ours else row.label,
                    *(_plain_cell(row.cells.get(measure)) for measure in measures()),
                    row_note(row, known=known),
                ]
                for row in table.rows(limit=limit)
            ),
        )
    if board.languages:
        parts += ["## Over languages, text to image, R@1", ""]
        heads = ["encoder", "set", "languages", "mean", "95 %", "spread", "worst", "English less others"]
        parts += _md_table(heads, (_language_line(row) for row in board.languages))
    if board.comparisons:
        parts += ["## Ours and printed, same weights and protocol", ""]
        parts += _md_table(COMPARISON_HEADS, comparison_lines(board))
    parts += ["## Where the numbers come from", ""]
    parts += _md_table(
        ["encoder", "set", "encoder hash", "preprocessing", "arithmetic", "set hash", "code", "date"],
        (_provenance(result) for result in board.results),
    )
    return "\n".join([*parts, licence_note(), ""])


def csv_text(board: Board) -> str:
    """Every number, one to a line; of ours and of what was printed under the same protocols."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=_CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for result in board.results:
        writer.writerows(_our_lines(result))
    for table in board.tables:
        for row in table.published:
            writer.writerows(_printed_lines(table, row))
    return stream.getvalue()


def _our_lines(result: Result) -> Iterable[dict[str, object]]:
    common = {
        "dataset": result.set.protocol,
        "language": result.set.language or "",
        "model": result.encoder.label,
        "hf_id": result.encoder.repository,
        "status": "" if result.set.complete else "partial",
        "encoder_key": result.encoder.key,
        "dtype": result.encoder.dtype,
        "preprocessing": result.encoder.preprocessing,
        "code": result.code,
        "date": result.date,
    }
    for one in result.directions:
        for at in one.recall:
            yield common | {
                "kind": "measured",
                "direction": one.direction,
                "k": at.k,
                "value": _percent(at.value),
                "low": _percent(at.low),
                "high": _percent(at.high),
                "expected": _percent(at.expected),
                "optimistic": _percent(at.optimistic),
                "queries": one.queries,
                "gallery": one.gallery,
                "median_rank": "" if one.median_rank is None else one.median_rank,
            }
    for through in result.through:
        for loss in through.at:
            yield common | {
                "kind": "through-index",
                "direction": "t2i",
                "k": loss.k,
                "value": _percent(loss.through),
                "exact": _percent(loss.exact),
                "overlap": _percent(loss.overlap),
                "milliseconds": f"{through.milliseconds:.3f}",
                "gallery": through.images,
                "source": through.index,
            }


def _printed_lines(table: Table, row: Row) -> Iterable[dict[str, object]]:
    name, _, language = table.dataset.partition(":")
    for (direction, k), cell in row.cells.items():
        yield {
            "kind": "printed",
            "dataset": name,
            "language": language,
            "model": row.label,
            "hf_id": row.hf_id,
            "direction": direction,
            "k": k,
            "value": f"{cell.value:g}",
            "status": row.mark.status,
            "source": row.source,
        }


def _percent(share: float) -> str:
    return f"{100 * share:.3f}"


def measures() -> list[Measure]:
    """Directions and k in the order of columns."""
    return [(direction, k) for direction in DIRECTIONS for k in KS]


def value_heads() -> list[str]:
    """What stands above them."""
    return [f"{'T→I' if direction == 't2i' else 'I→T'} R@{k}" for direction, k in measures()]


def heading(table: Table) -> str:
    """Name and size of a set."""
    sizes = {(row.result.set.images, row.result.set.captions) for row in table.ours if row.result}
    counts = ", ".join(f"{images:,} images and {captions:,} captions" for images, captions in sorted(sizes))
    title = title_of(table.dataset)
    return f"{title}, {counts}" if title == table.dataset else f"{title} [{table.dataset}], {counts}"


def _plain_cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    if cell.low is None or cell.high is None:
        return f"{cell.value:.1f}"
    return f"{cell.value:.1f} ({cell.low:.1f}–{cell.high:.1f})"


def set_notes(table: Table) -> list[str]:
    """What is to be known of the set itself: the notes that all of ours share."""
    ours = [row.result.set.notes for row in table.ours if row.result]
    return [note for note in ours[0] if all(note in others for others in ours)] if ours else []


def row_note(row: Row, *, known: Collection[str] = ()) -> str:
    """What is to be known of a row, but for ``known``, which is said elsewhere."""
    notes = []
    if row.result is not None:
        notes += ["≈ best"] * row.near_best
        notes += ["other images or captions than most of ours here"] * row.other_queries
        gap = max((one.tie_gap for one in row.result.directions), default=0.0)
        notes += [f"ties move recall by up to {100 * gap:.1f}: coarse or collapsed vectors"] * (gap > TIE_GAP)
        notes += [f"{row.result.overlap}: {row.result.overlap_note}"] * bool(row.result.overlap_note)
        for one in row.result.through:
            losses = ", ".join(f"R@{at.k} {100 * (at.through - at.exact):+.1f}" for at in one.at)
            under = f" where {one.where}" if one.where else ""
            notes.append(f"through {one.index}{under}: {losses}")
        notes += [note for note in row.result.set.notes if note not in known]
    else:
        notes += [f"{row.mark.status}: {row.mark.reason}"] * bool(row.mark.status)
        notes += [f"{row.overlap.level.value}: {row.overlap.why}"] * bool(row.overlap.why)
        notes.append(row.source)
    return "; ".join(notes)


def comparison_lines(board: Board) -> Iterable[list[str]]:
    """Ours beside the printed numbers of the same weights, in words."""
    for result, one in board.comparisons:
        yield [
            result.encoder.label,
            result.set.id,
            f"{'T→I' if one.row.direction == 't2i' else 'I→T'} R@{one.row.k}",
            f"{one.ours:.2f}",
            f"{one.row.value:g}",
            f"{one.difference:+.2f}",
            f"±{one.band.points:g}",
            verdict(one),
            one.row.source,
        ]


def verdict(one: Comparison) -> str:
    """Whether a difference lies within its band, or why nothing is said about it."""
    if one.mark.status:
        return f"{one.mark.status}: {one.mark.reason}"
    if one.within is None:
        return f"for information: {one.band.why}"
    return "yes" if one.within else "NO"


def _provenance(result: Result) -> list[str]:
    encoder = result.encoder
    return [
        encoder.label,
        result.set.id,
        encoder.key[:12],
        encoder.preprocessing,
        f"{encoder.dtype} on {encoder.device}, {encoder.parity}",
        result.set.sha256[:12],
        result.code,
        result.date,
    ]


def _language_line(row: LanguageRow) -> list[str]:
    found = row.summary
    gap = "" if found.english_gap is None else f"{100 * found.english_gap:+.1f}"
    return [
        row.result.encoder.label,
        row.protocol,
        str(len(found.languages)),
        f"{100 * found.mean:.1f}",
        f"{100 * found.low:.1f}–{100 * found.high:.1f}",
        f"{100 * found.spread:.1f}",
        f"{100 * found.worst:.1f} ({', '.join(found.worst_languages)})",
        gap,
    ]


def _md_table(heads: list[str], lines: Iterable[list[str]]) -> list[str]:
    rows = [heads, ["---"] * len(heads), *lines]
    return [
        *("| " + " | ".join(_md(cell) for cell in row) + " |" for row in rows),
        "",
    ]


def _md(text: str) -> str:
    return escape_control(text).translate(_MARKS)
