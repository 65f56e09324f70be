"""One search from a cold start, split into its parts, and the same within a running process.

The whole is the installed command, ``llm2clip-search QUERY --index PATH``, from starting the process to its end. The
split comes from runs that do the same steps with a clock between them, so its sum differs a little from the whole.
"Cold" is the process; the files are in the page cache after the first run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter

from benchmarks.measuring import Row, Settings, percentile, seconds

QUERY = "an animal with a long neck"
PARTS = (
    "python start",
    "imports",
    "index open",
    "model load",
    "encode",
    "search",
    "render",
    "exit",
)


def measure(settings: Settings) -> list[Row]:
    """Whole command, its parts, and a warm search."""
    index = build(settings)
    command = [str(Path(sys.executable).with_name("llm2clip-search")), QUERY, "--index", str(index)]
    if not Path(command[0]).exists():
        command[0:1] = [sys.executable, "-m", "llm2clip.retrieval.cli"]
    command.append("--no-daemon")
    times = settings.times(15)
    wall, processor = zip(*(_run(command) for _ in range(times)), strict=True)
    whole, other = (processor, wall) if settings.processor_time else (wall, processor)
    parts = [_split(index, settings) for _ in range(times)]
    rows = [
        Row(
            benchmark="cold search",
            what=part,
            value=statistics.median(each[part] for each in parts),
            unit="s",
        )
        for part in PARTS
    ]
    other_name = "wall" if settings.processor_time else "processor"
    rows.append(
        Row(
            benchmark="cold search",
            what="whole command",
            value=statistics.median(whole),
            unit="s",
            aim=1.2,
            note=f"95th percentile {percentile(whole, 95):.2f} s; {other_name} time {statistics.median(other):.2f} s",
        )
    )
    warm = _warm(index, settings)
    rows.append(Row(benchmark="warm search", what="encode, search and render", value=warm * 1e3, unit="ms"))
    return rows


def build(settings: Settings) -> Path:
    """An index of the corpus."""
    from llm2clip.encoders import load_encoder
    from llm2clip.indexer import BuildOptions, build_index

    path = settings.work / "cold"
    options = BuildOptions(encoder_source=settings.encoder)
    build_index(settings.corpus, path, encoder=load_encoder(settings.encoder), options=options)
    return path


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds of wall and of processor time of a command."""
    began, before = perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took, after = perf_counter() - began, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return took, user + system


def _split(index: Path, settings: Settings) -> dict[str, float]:
    """One cold run with a clock between its steps. ``perf_counter`` is the same clock in both processes (POSIX)."""
    command = [sys.executable, "-c", _DRIVER, str(index), settings.encoder, QUERY, settings.clock.__name__]
    began, before = perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ended, after = perf_counter(), os.times()
    if settings.processor_time:
        began = 0.0
        ended = after.children_user - before.children_user + after.children_system - before.children_system
    marks = [began, *json.loads(done.stderr.splitlines()[-1]), ended]
    return {part: later - earlier for part, (earlier, later) in zip(PARTS, pairwise(marks), strict=True)}


# The imports are those that the command makes in the course of its work, brought forward.
_DRIVER = """
import gc, json, sys, time
clock = getattr(time, sys.argv[4])
marks = [clock()]
mark = lambda: marks.append(clock())
gc.disable()
import llm2clip.retrieval.cli, llm2clip.retrieval.commands, llm2clip.retrieval.output.results
import rich.console, rich.table
import faiss, tokenizers
import llm2clip.indexer.search.index
from llm2clip.encoders import load_encoder
import llm2clip.encoders.llm2clip.encoder_folder
mark()
index = llm2clip.indexer.search.index.open_index(sys.argv[1])
mark()
encoder = load_encoder(sys.argv[2])
index.require_encoder(encoder.info)
encoder.count_tokens(["warm"])
encoder.encode_texts(["warm"])
mark()
vectors = encoder.encode_texts([sys.argv[3]])
mark()
found = index.search(vectors, k=10)
mark()
from llm2clip.retrieval.output.results import Answer, text_query
llm2clip.retrieval.output.printing.print_answers([Answer(query=text_query(sys.argv[3]), hits=found[0])])
mark()
print(json.dumps(marks), file=sys.stderr)
gc.freeze()
"""


def _warm(index: Path, settings: Settings) -> float:
    from rich.console import Console

    from llm2clip.retrieval import Searcher
    from llm2clip.retrieval.output.results import Answer, answer_table, text_query

    with Searcher.open(index, encoder=settings.encoder) as searcher, open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, width=80)

        def once() -> None:
            answer = Answer(query=text_query(QUERY), hits=searcher.search(QUERY))
            console.print(answer_table(answer, width=80))

        return statistics.median(seconds(once, times=settings.times(200), clock=settings.clock))
