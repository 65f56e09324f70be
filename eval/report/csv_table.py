"""The leaderboard as CSV: every number, one per line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from llm2clip.eval.report.leaderboard import Board, Row, Table
from llm2clip.eval.results.records import Result

# fmt: off
_FIELDS = (
    "kind", "dataset", "language", "model", "hf_id", "direction", "k", "value", "low", "high", "expected",
    "optimistic", "queries", "gallery", "median_rank", "exact", "overlap", "milliseconds",
    "images_per_second", "texts_per_second", "query_ms", "peak_memory_mb", "status", "source",
    "encoder_key", "dtype", "preprocessing", "code", "date",
)
# fmt: on


def csv_text(board: Board) -> str:
    """Every number, one per line; of ours and of what was published under the same protocols."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=_FIELDS, lineterminator="\n")
    writer.writeheader()
    for result in board.results:
        writer.writerows(_our_lines(result))
    for table in board.tables:
        for row in table.published:
            writer.writerows(_published_lines(table, row))
    return stream.getvalue()


def _our_lines(result: Result) -> Iterator[dict[str, object]]:
    common: dict[str, object] = {
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
    if cost := result.cost:
        rates = ("images_per_second", "texts_per_second", "query_ms")
        known = {name: f"{rate:.3f}" for name in rates if (rate := getattr(cost, name)) is not None}
        common |= known | {"peak_memory_mb": cost.peak_memory_mb}
    for one in result.directions:
        for at in one.recall:
            shares = {
                name: _percent(getattr(at, name))
                for name in ("value", "low", "high", "expected", "optimistic")
            }
            yield (
                common
                | shares
                | {
                    "kind": "measured",
                    "direction": one.direction,
                    "k": at.k,
                    "queries": one.queries,
                    "gallery": one.gallery,
                    "median_rank": "" if one.median_rank is None else one.median_rank,
                }
            )
    for through in result.index_recall:
        for loss in through.at:
            yield common | {
                "kind": "through-index",
                "direction": "t2i",
                "k": loss.k,
                "value": _percent(loss.index_recall),
                "exact": _percent(loss.exact),
                "overlap": _percent(loss.overlap),
                "milliseconds": f"{through.milliseconds:.3f}",
                "gallery": through.images,
                "source": through.index,
            }


def _published_lines(table: Table, row: Row) -> Iterator[dict[str, object]]:
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
            "status": row.flag.status,
            "source": row.source,
        }


def _percent(share: float) -> str:
    return f"{100 * share:.3f}"
