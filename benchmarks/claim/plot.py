"""Values with their intervals as an SVG file: a row for each, a dot and a line from the low end to the high one."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from llm2clip.common.files import write_atomic
from llm2clip.eval.stats.bootstrap import Interval

_WIDTH, _LEFT, _ROW, _ABOVE = 760, 330, 24, 34


def plot(path: Path, rows: Sequence[tuple[str, Interval]], *, title: str) -> str:
    """Write the file and return the line of Markdown that shows it.

    Args:
        path: File to write, beside the page that shows it.
        rows: Name of each value, and the value in percent with its interval.
        title: What is measured.
    """
    most = max(10.0, max(interval.high for _, interval in rows))
    height = _ABOVE + _ROW * len(rows) + 24

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 60) * value / most

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        'font-size="13"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20" font-weight="bold">{html.escape(title)}</text>',
    ]
    for mark in range(0, int(most) + 1, 5 if most <= 40 else 20):
        end = height - 20
        parts += [
            f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{_ABOVE - 6}" y2="{end}" stroke="#ddd"/>',
            f'<text x="{x(mark):.1f}" y="{height - 5}" text-anchor="middle" fill="#555">{mark}</text>',
        ]
    for number, (name, interval) in enumerate(rows):
        y = _ABOVE + _ROW * number + 8
        parts += [
            f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>',
            f'<line x1="{x(interval.low):.1f}" x2="{x(interval.high):.1f}" y1="{y}" y2="{y}" stroke="#1f6feb" '
            'stroke-width="2"/>',
            f'<circle cx="{x(interval.value):.1f}" cy="{y}" r="4" fill="#1f6feb"/>',
            f'<text x="{x(interval.high) + 8:.1f}" y="{y + 4}">{interval.value:.1f}</text>',
        ]
    write_atomic(path, "\n".join([*parts, "</svg>"]) + "\n")
    return f"![{title}]({path.name})"
