"""One search by the command with the daemon and without: process start to table.

Both are the installed command with the same arguments, run in turns so that a busy machine slows both alike. Every
query is a new text, so that nothing but the models is kept.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.cold_search import build
from benchmarks.measuring import Row, Settings, percentile

_NOUNS = ("horse", "lake", "church", "bicycle", "child", "flower", "bridge", "boat", "dog", "street")
_PLACES = ("in the snow", "at night", "by the sea", "under trees", "in a city", "on a hill", "in the rain")


def measure(settings: Settings) -> list[Row]:
    """Seconds with the daemon and without, and their ratio."""
    index = build(settings)
    texts = [f"a {noun} {place}" for place in _PLACES for noun in _NOUNS]
    with tempfile.TemporaryDirectory(prefix="llm2clip-", dir="/tmp") as sockets:
        environment = os.environ | {"LLM2CLIP_DAEMON": "1", "XDG_RUNTIME_DIR": sockets}
        first = _seconds(texts.pop(), index, environment)
        warm, cold = [], []
        try:
            for text in texts[: settings.times(20)]:
                warm.append(_seconds(text, index, environment))
                cold.append(_seconds(text, index, environment, "--no-daemon"))
            same = all(_json(text, index, environment) for text in texts[:3])
        finally:
            subprocess.run(
                [_command(), "--daemon", "stop"], env=environment, capture_output=True, check=False
            )
    fast, slow = statistics.median(warm), statistics.median(cold)
    note = f"95th percentile {percentile(warm, 95) * 1e3:.0f} ms"
    return [
        Row(
            benchmark="warm command", what="with the daemon", value=fast * 1e3, unit="ms", aim=150, note=note
        ),
        Row(benchmark="warm command", what="without", value=slow * 1e3, unit="ms"),
        Row(benchmark="warm command", what="first, starts the daemon", value=first * 1e3, unit="ms"),
        Row(
            benchmark="warm command",
            what="without / with the daemon",
            value=slow / fast,
            unit="ratio",
            aim=8,
            better="higher",
        ),
        Row(
            benchmark="warm command",
            what="same output",
            value=float(same),
            unit="ratio",
            aim=1,
            better="higher",
        ),
    ]


def _command() -> str:
    return str(Path(sys.executable).with_name("llm2clip-search"))


def _run(text: str, index: Path, environment: dict[str, str], *options: str) -> bytes:
    command = [_command(), text, "--index", str(index), *options]
    return subprocess.run(command, env=environment, capture_output=True, check=True).stdout


def _seconds(text: str, index: Path, environment: dict[str, str], *options: str) -> float:
    began = perf_counter()
    _run(text, index, environment, *options)
    return perf_counter() - began


def _json(text: str, index: Path, environment: dict[str, str]) -> bool:
    return _run(text, index, environment, "--json") == _run(text, index, environment, "--json", "--no-daemon")
