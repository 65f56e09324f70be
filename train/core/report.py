"""One self-contained HTML page per run: curves as inline SVG, evaluations, settings. No script, nothing fetched."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2clip.common.files import write_atomic
from llm2clip.train.core.display import duration
from llm2clip.train.core.history import FILE, read_history
from llm2clip.train.core.run_folder import Run

REPORT = "report.html"
_WIDTH, _HEIGHT, _LEFT, _BELOW = 560, 220, 56, 26
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#0598bc", "#bf3989", "#57606a")
_POINTS = 600
"""Most points of a curve; longer ones are averaged in equal parts."""
_HIDDEN = ("stage", "step", "kind", "time")
_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr));gap:1rem;margin-top:1.5rem}
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}
svg text{font-size:12px;fill:currentColor}svg .grid{stroke:currentColor;opacity:.15}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .7rem;border-bottom:1px solid #8884;text-align:right}
td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto}
.key{display:inline-block;margin-right:1rem}.key i{display:inline-block;width:1.2em;height:3px;margin-right:.3em;
vertical-align:middle}pre{overflow-x:auto;background:#8881;padding:1rem}
"""


@dataclass(frozen=True)
class Curve:
    """A measured value over steps."""

    name: str
    """What the legend says."""
    points: tuple[tuple[float, float], ...]
    """Step and value, by step; finite."""


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the run's folder."""
    path = run.folder / REPORT
    history = run.folder / FILE
    lines = list(read_history(history)) if history.exists() else []
    write_atomic(path, render_report(run.read(), lines, title=run.folder.resolve().name))
    return path


def render_report(record: Mapping[str, Any], history: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """The page.

    Args:
        record: What ``run.json`` holds.
        history: Lines of ``history.jsonl``.
        title: Heading.
    """
    body = [f"<h1>{_text(title)}</h1>", f"<p>{_text(_summary(record))}</p>"]
    for stage, entry in record.get("stages", {}).items():
        lines = [line for line in history if line["stage"] == stage]
        body += [f"<h2>{_text(stage)}</h2>", f"<p>{_text(_state(entry, lines))}</p>"]
        body += [_evaluations(lines), _curves(lines), _settings(entry.get("config", {}))]
    if "data" in record:
        body += [
            "<h2>Data</h2>",
            f"<pre>{_text(json.dumps(record['data'], indent=1, ensure_ascii=False))}</pre>",
        ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><style>'
        f"{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def draw(curves: Sequence[Curve], *, title: str) -> str:
    """Curves with a common axis as one SVG figure; those of at least one point."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    steps = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    low, high = _padded(min(values), max(values))
    last = max(max(steps), 1)

    def place(step: float, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT - 8) * step / last
        return f"{x:.1f},{8 + (_HEIGHT - _BELOW - 8) * (high - value) / (high - low):.1f}"

    marks = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y}" y2="{y}"/>'
        f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        for value in _ticks(low, high)
        for y in [place(0, value).split(",")[1]]
    )
    lines = "".join(
        f'<polyline fill="none" stroke="{_COLOURS[n % len(_COLOURS)]}" stroke-width="1.6" '
        f'points="{" ".join(place(*point) for point in _thinned(curve.points))}"/>'
        for n, curve in enumerate(curves)
    )
    ends = (
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">0</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">step {last:,.0f}</text>'
    )
    legend = "".join(
        f'<span class="key"><i style="background:{_COLOURS[n % len(_COLOURS)]}"></i>{_text(curve.name)}</span>'
        for n, curve in enumerate(curves)
    )
    return (
        f"<figure><figcaption>{_text(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(title)} over steps">{marks}{lines}{ends}'
        f"</svg>{legend if len(curves) > 1 else ''}</figure>"
    )


def _summary(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    return f"Seed {record.get('seed')}. {versions}."


def _state(entry: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    if "finished" in entry:
        weights = f"; the weights of step {entry['exported']:,} were kept" if "exported" in entry else ""
        took = f" after {duration(entry['seconds'])} since it was last started" if "seconds" in entry else ""
        return f"Finished at {entry['finished']}{took}, {entry.get('steps', 0):,} steps{weights}."
    return f"Unfinished; the last line is of step {max((line['step'] for line in lines), default=0):,}."


def _evaluations(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [line for line in lines if line["kind"] == "evaluation"]
    if not rows:
        return ""
    names = [name for name in rows[-1] if name not in _HIDDEN]
    shown = rows if len(rows) <= 12 else [rows[0], *rows[-11:]]
    head = "".join(f"<th>{row['step']:,}</th>" for row in shown)
    table = "".join(
        f"<tr><td>{_text(name)}</td>{''.join(f'<td>{_number(row.get(name, math.nan))}</td>' for row in shown)}</tr>"
        for name in names
    )
    return f'<div class="wide"><table><tr><th>step</th>{head}</tr>{table}</table></div>'


def _curves(lines: Sequence[Mapping[str, Any]]) -> str:
    training = [line for line in lines if line["kind"] == "train"]
    figures = [
        draw([_curve(training, name)], title=name) for name in _names(training) if name != "items_per_second"
    ]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    groups: dict[str, list[str]] = {}
    for name in _names(evaluations):
        # "en/R@10" and "zh/R@10" share a figure.
        groups.setdefault(name.rpartition("/")[2], []).append(name)
    figures += [
        draw([_curve(evaluations, name) for name in names], title=title) for title, names in groups.items()
    ]
    figures.append(draw([_curve(training, "items_per_second")], title="items per second"))
    return f'<div class="curves">{"".join(figures)}</div>'


def _settings(config: Mapping[str, Any]) -> str:
    text = json.dumps(config, indent=1, ensure_ascii=False)
    return f"<details><summary>Settings</summary><pre>{_text(text)}</pre></details>"


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line if name not in _HIDDEN))


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> Curve:
    points = tuple(
        (float(line["step"]), float(line[name]))
        for line in lines
        if name in line and math.isfinite(line[name])
    )
    return Curve(name.rpartition("/")[0] or name, points)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    part = max(1, math.ceil(len(points) / _POINTS))
    blocks = [points[n : n + part] for n in range(0, len(points), part)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in blocks]


def _padded(low: float, high: float) -> tuple[float, float]:
    spare = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - spare, high + spare


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values between the ends."""
    step = 10 ** math.floor(math.log10(high - low))
    step = next(step * f for f in (1, 0.5, 0.2, 0.1) if (high - low) / (step * f) >= 3)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _text(value: object) -> str:
    return html.escape(str(value))
