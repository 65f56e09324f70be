"""The leaderboard as one self-contained HTML page: nothing is fetched, and only its own script may run.

Text from outside stays in one block of JSON and is shown as text; the Content-Security-Policy names the script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm2clip.eval.datasets.protocols import declared
from llm2clip.eval.datasets.retrieval_set import PARTIAL
from llm2clip.eval.report.leaderboard import DIRECTIONS, KS, Board, Row, published_table, title_of
from llm2clip.eval.report.markdown import TIE_GAP, published_note, verdict
from llm2clip.eval.results.encoder_record import code_version
from llm2clip.eval.results.published_numbers import Comparison, licence_note, published_rows
from llm2clip.eval.results.records import DirectionResult, Result, Share

_TEMPLATE = Path(__file__).with_name("leaderboard.html")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def render_page(board: Board, *, now: datetime | None = None) -> str:
    """The page as a string."""
    template = _TEMPLATE.read_text(encoding="utf-8")
    script = _SCRIPT.search(template)
    assert script is not None, "the template has no script"
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    page = template.replace("$SCRIPT_HASH", digest)
    return page.replace("$DATA", _embedded(page_data(board, now=now or datetime.now(UTC))))


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def page_data(board: Board, *, now: datetime) -> dict[str, Any]:
    """All that the page's script shows, as plain JSON."""
    rows = {
        (table.dataset, row.label, row.result.encoder.key): row
        for table in board.tables
        for row in table.ours
        if row.result
    }
    names = dict.fromkeys(
        [table.dataset for table in board.tables] + [row.dataset for row in published_rows()]
    )
    return {
        "made": now.isoformat(timespec="seconds"),
        "code": code_version(),
        "licence": {"en": licence_note("en"), "zh": licence_note("zh")},
        "results": [
            _result(result, row=rows[result.set.id, result.encoder.label, result.encoder.key])
            for result in board.results
        ],
        "titles": {name: title_of(name) for name in names},
        "protocols": _protocols(names),
        "published": _published(names),
        "languages": {
            f"{row.protocol} {row.result.encoder.key}": {
                "low": row.summary.low,
                "high": row.summary.high,
                "worst": row.summary.worst,
                "worstLanguages": list(row.summary.worst_languages),
                "gap": row.summary.english_gap,
            }
            for row in board.languages
        },
        "comparisons": [_comparison(result, one) for result, one in board.comparisons],
    }


def _protocols(datasets: Sequence[str] | dict[str, None]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in dict.fromkeys(dataset.partition(":")[0] for dataset in datasets):
        protocol = declared(name.removesuffix(PARTIAL))
        if protocol:
            found[name] = {"title": protocol.title, "rule": protocol.rule, "traps": list(protocol.traps)}
    return found


def _result(result: Result, *, row: Row) -> dict[str, Any]:
    encoder, of = result.encoder, result.set
    return {
        "set": of.id,
        "complete": of.complete,
        "images": of.images,
        "captions": of.captions,
        "setHash": of.sha256,
        "notes": [*published_note(result), *of.notes],
        "encoder": encoder.label,
        "key": encoder.key,
        "hub": encoder.repository,
        "family": encoder.family,
        "parameters": encoder.parameters,
        "dim": encoder.dim,
        "imageSize": encoder.image_size,
        "maxTokens": encoder.max_text_tokens,
        "preprocessing": encoder.preprocessing,
        "arithmetic": f"{encoder.dtype} / {encoder.text_dtype}, {encoder.device}, {encoder.parity}",
        "weights": encoder.weights_sha256,
        "settings": encoder.settings_sha256,
        "date": result.date,
        "code": result.code,
        "machine": result.machine,
        "libraries": [f"{name} {version}" for name, version in result.libraries],
        "resamples": result.resamples,
        "seed": result.seed,
        "near": row.near_best,
        "other": row.other_queries,
        "ties": any(one.tie_gap > TIE_GAP for one in result.directions),
        "overlap": result.overlap,
        "overlapNote": result.overlap_note,
        "directions": {one.direction: _direction(one) for one in result.directions},
        "lengths": {
            "truncated": result.lengths.truncated,
            "tokens": result.lengths.tokens_per_caption,
            "buckets": [_share(one) for one in result.lengths.buckets],
            "prefixes": [_share(one) for one in result.lengths.prefixes],
        }
        if result.lengths
        else None,
        "cost": {
            "images": result.cost.images_per_second,
            "texts": result.cost.texts_per_second,
            "memory": result.cost.peak_memory_mb,
            "query": result.cost.query_ms,
            "threads": result.cost.threads,
        }
        if result.cost
        else None,
        "indexRecall": [
            {
                "index": f"{one.index} where {one.where}" if one.where else one.index,
                "images": one.images,
                "ms": one.milliseconds,
                "at": [[at.k, at.exact, at.index_recall, at.overlap] for at in one.at],
            }
            for one in result.index_recall
        ],
    }


def _direction(one: DirectionResult) -> dict[str, Any]:
    return {
        "queries": one.queries,
        "gallery": one.gallery,
        "median": one.median_rank,
        "mean": one.mean_recall,
        "map": one.map_at_r,
        "recall": {str(at.k): [at.value, at.low, at.high, at.expected, at.optimistic] for at in one.recall},
        "hubs": [one.hubs.skewness, one.hubs.never, one.hubs.top_share] if one.hubs else None,
        "adjusted": {extra.name: {str(k): value for k, value in extra.recall} for extra in one.adjusted},
    }


def _share(one: Share) -> list[object]:
    return [one.label, one.tokens, one.queries, one.value, one.low, one.high]


def _published(datasets: Sequence[str] | dict[str, None]) -> dict[str, Any]:
    """The printed table, every word once: rows of [set, model, source, flag, six values]."""
    models, sources, flags = _Numbered(), _Numbered(), _Numbered()
    rows = []
    for number, dataset in enumerate(datasets):
        for row in published_table(dataset):
            seen = row.overlap
            flag = (row.flag.status, row.flag.reason, row.flag.reason_zh, seen.level.value, seen.why)
            values = [cell.value if (cell := row.cells.get((d, k))) else None for d in DIRECTIONS for k in KS]
            rows.append(
                [number, models[row.label, row.hf_id], sources[(row.source,)], flags[flag], *_short(values)]
            )
    return {
        "sets": list(datasets),
        "models": models.all,
        "sources": [source for (source,) in sources.all],
        "flags": flags.all,
        "rows": rows,
    }


def _short(values: list[float | None]) -> list[float | None]:
    while values and values[-1] is None:
        values.pop()
    return values


class _Numbered:
    """Consecutive numbers in the order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, ...], int] = {}

    def __getitem__(self, item: tuple[str, ...]) -> int:
        return self._numbers.setdefault(item, len(self._numbers))

    @property
    def all(self) -> list[tuple[str, ...]]:
        return list(self._numbers)


def _comparison(result: Result, one: Comparison) -> dict[str, Any]:
    row = one.row
    return {
        "encoder": result.encoder.label,
        "set": result.set.id,
        "direction": row.direction,
        "k": row.k,
        "ours": one.ours,
        "printed": row.value,
        "tolerance": one.tolerance.points,
        "within": one.within,
        "status": one.flag.status,
        "verdict": verdict(one),
        "verdictZh": one.flag.reason_zh,
        "model": row.model,
        "source": row.source,
    }
