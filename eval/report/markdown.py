"""The leaderboard as Markdown, and the texts that terminal tables share with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from llm2clip.common.files import counted
from llm2clip.common.terminal import escape_control
from llm2clip.eval.report.leaderboard import DIRECTIONS, KS, Board, Cell, LanguageRow, Row, Table, title_of
from llm2clip.eval.results.published_numbers import Comparison, licence_note
from llm2clip.eval.results.records import CostRecord, Result

_ESCAPED = str.maketrans({"|": "\\|", "<": "&lt;"})
"""What would end a cell of Markdown, or begin HTML in it."""
TIE_GAP = 0.001
"""Share by which ties may move a recall before a table says so."""
ARROWS = {"t2i": "T→I", "i2t": "I→T"}
MEASURES = tuple((direction, k) for direction in DIRECTIONS for k in KS)
"""Direction and k of the columns."""
VALUE_HEADS = tuple(f"{ARROWS[direction]} R@{k}" for direction, k in MEASURES)
COST_HEADS = ("images/s", "texts/s", "ms/query", "MB")
"""Cost of encoding: rates, median time of a query alone, peak memory of the process."""
COMPARISON_HEADS = (
    "encoder",
    "set",
    "R@k",
    "ours",
    "published",
    "difference",
    "tolerance",
    "within",
    "source",
)


def markdown(board: Board, *, limit: int) -> str:
    """The leaderboard as Markdown, with provenance and what the numbers mean."""
    parts = [
        "# Leaderboard",
        "",
        "Recall in percent, ties counted against the encoder, with 95 % intervals drawn over images; published numbers "
        "come without. **Bold** was measured here. ≈ indistinguishable from the best measured here. Costs are those of "
        "encoding where it was measured; compare them on one machine only.",
        "",
    ]
    for table in board.tables:
        known, rows = set_notes(table), table.rows(limit=limit)
        costs = COST_HEADS if any(map(cost_of, rows)) else ()
        parts += [f"## {heading(table)}", "", *(f"{_md(note)}\n" for note in known)]
        parts += _md_table(
            ("encoder", *VALUE_HEADS, *costs, "note"),
            (
                [
                    f"**{row.label}**" if row.ours else row.label,
                    *(cell_text(row.cells.get(measure), " ({}–{})") for measure in MEASURES),
                    *(cost_cells(row) if costs else ()),
                    row_note(row, known=known),
                ]
                for row in rows
            ),
        )
    if board.languages:
        parts += ["## Over languages, text to image, R@1", ""]
        heads = ("encoder", "set", "languages", "mean", "95 %", "spread", "worst", "English less others")
        parts += _md_table(heads, map(_language_line, board.languages))
    if board.comparisons:
        parts += ["## Ours and published, same weights and protocol", ""]
        parts += _md_table(COMPARISON_HEADS, comparison_lines(board))
    parts += ["## Where the numbers come from", ""]
    heads = ("encoder", "set", "encoder hash", "preprocessing", "precision", "set hash", "code", "date")
    parts += _md_table(heads, map(_provenance, board.results))
    return "\n".join([*parts, licence_note(), ""])


def heading(table: Table) -> str:
    """Name and size of a data set."""
    sizes = {(row.result.set.images, row.result.set.captions) for row in table.ours if row.result}
    counts = ", ".join(
        f"{counted(images, 'image')} and {counted(captions, 'caption')}" for images, captions in sorted(sizes)
    )
    title = title_of(table.dataset)
    return f"{title}, {counts}" if title == table.dataset else f"{title} [{table.dataset}], {counts}"


def cell_text(cell: Cell | None, interval: str) -> str:
    """A recall, with its interval in the given form where it has one."""
    if cell is None:
        return "-"
    if cell.low is None or cell.high is None:
        return f"{cell.value:.1f}"
    return f"{cell.value:.1f}" + interval.format(f"{cell.low:.1f}", f"{cell.high:.1f}")


def cost_of(row: Row) -> CostRecord | None:
    """What encoding cost, if a rate was measured."""
    cost = row.result.cost if row.result else None
    return cost if cost and (cost.images_per_second or cost.texts_per_second or cost.query_ms) else None


def cost_cells(row: Row) -> list[str]:
    """The cells under ``COST_HEADS``."""
    if (cost := cost_of(row)) is None:
        return ["-"] * len(COST_HEADS)
    rates = (cost.images_per_second, cost.texts_per_second, cost.query_ms)
    return [
        *("-" if rate is None else f"{rate:,.{0 if rate >= 100 else 1}f}" for rate in rates),
        f"{cost.peak_memory_mb:,}",
    ]


def cost_note(row: Row) -> str:
    """The same in one line; empty if nothing was measured."""
    if cost_of(row) is None:
        return ""
    cells = zip(COST_HEADS, cost_cells(row), strict=True)
    return ", ".join(f"{value} {head}" for head, value in cells if value != "-")


def set_notes(table: Table) -> list[str]:
    """Notes on the data set itself: those that all of ours share."""
    ours = [row.result.set.notes for row in table.ours if row.result]
    return [note for note in ours[0] if all(note in others for others in ours)] if ours else []


def row_note(row: Row, *, known: Collection[str] = ()) -> str:
    """Notes on a row, but for ``known``, which are given elsewhere."""
    if row.result is None:
        notes = [f"{row.flag.status}: {row.flag.reason}"] * bool(row.flag.status)
        notes += [f"{row.overlap.level.value}: {row.overlap.why}"] * bool(row.overlap.why)
        return "; ".join([*notes, row.source])
    notes = [*published_note(row.result), *["≈ best measured"] * row.near_best]
    notes += ["other images or captions than most of ours here"] * row.other_queries
    gap = max((one.tie_gap for one in row.result.directions), default=0.0)
    notes += [f"ties move recall by up to {100 * gap:.1f}: low precision or collapsed vectors"] * (
        gap > TIE_GAP
    )
    notes += [f"{row.result.overlap}: {row.result.overlap_note}"] * bool(row.result.overlap_note)
    for one in row.result.index_recall:
        losses = ", ".join(f"R@{at.k} {100 * (at.index_recall - at.exact):+.1f}" for at in one.at)
        notes.append(f"through {one.index}{f' where {one.where}' if one.where else ''}: {losses}")
    return "; ".join([*notes, *(note for note in row.result.set.notes if note not in known)])


def published_note(result: Result) -> list[str]:
    """Whether an encoder was checked to be the published one of its name; nothing if it was, or has another name."""
    said = {
        "unverified": "weights unverified: only their sizes were compared with the published ones",
        "other": f"not the published {result.encoder.name}",
    }
    return [said[result.encoder.published]] if result.encoder.published in said else []


def comparison_lines(board: Board) -> Iterator[list[str]]:
    """The cells under ``COMPARISON_HEADS``."""
    for result, one in board.comparisons:
        yield [
            result.encoder.label,
            result.set.id,
            f"{ARROWS[one.row.direction]} R@{one.row.k}",
            f"{one.ours:.2f}",
            f"{one.row.value:g}",
            f"{one.difference:+.2f}",
            f"±{one.tolerance.points:g}",
            verdict(one),
            one.row.source,
        ]


def verdict(one: Comparison) -> str:
    """Whether a difference is within its tolerance, or why nothing is concluded from it."""
    if one.flag.status:
        return f"{one.flag.status}: {one.flag.reason}"
    if one.within is None:
        return f"for information: {one.tolerance.why}"
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
    return [
        row.result.encoder.label,
        row.protocol,
        str(len(found.languages)),
        f"{100 * found.mean:.1f}",
        f"{100 * found.low:.1f}–{100 * found.high:.1f}",
        f"{100 * found.spread:.1f}",
        f"{100 * found.worst:.1f} ({', '.join(found.worst_languages)})",
        "" if found.english_gap is None else f"{100 * found.english_gap:+.1f}",
    ]


def _md_table(heads: Iterable[str], lines: Iterable[list[str]]) -> list[str]:
    heads = list(heads)
    rows = [heads, ["---"] * len(heads), *lines]
    return [*("| " + " | ".join(map(_md, row)) + " |" for row in rows), ""]


def _md(text: str) -> str:
    return escape_control(text).translate(_ESCAPED)
