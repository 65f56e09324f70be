"""The same benchmarks on this tree and on another commit, in turn on the same machine, as ratios.

Absolute times say little on a shared machine. Here both trees are measured in every round, one after the other, in an
order that changes; a figure's ratio is the median over the rounds of (here / there).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import format_value, with_headings

ROOT = Path(__file__).parent.parent
_AREAS = ("common", "encoders", "indexer", "retrieval", "train", "eval")

Key = tuple[str, str]
"""Benchmark and what it measured."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A figure of both trees."""

    benchmark: str
    """The name of a benchmark."""
    what: str
    """What it measured."""
    unit: str
    """Its unit."""
    here: float
    """Median of this tree."""
    there: float
    """Median of the other commit."""
    ratio: float
    """Median over the rounds of here / there."""
    better: str
    """``higher`` or ``lower``."""


@contextmanager
def other_tree(commit: str, work: Path) -> Iterator[Path]:
    """A checkout of a commit, removed afterwards.

    Raises:
        ValueError: There is no such commit.
    """
    folder = work / "other"
    made = _git("worktree", "add", "--detach", str(folder), commit)
    if made.returncode:
        raise ValueError(f"no commit {commit!r}: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


def measure_tree(tree: Path, arguments: Sequence[str], work: Path) -> dict[Key, dict[str, Any]]:
    """Run the benchmarks of a tree with this interpreter; the rows by key.

    Raises:
        ValueError: The tree's benchmarks failed.
    """
    package = work / f"package-{tree.name}" / "llm2clip"
    if not package.exists():
        package.mkdir(parents=True)
        for area in _AREAS:
            if (tree / area).is_dir():
                (package / area).symlink_to(tree / area)
    written = work / "rows.json"
    path = os.pathsep.join((str(package.parent), str(tree)))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments, "--json", str(written)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"the benchmarks of {tree.name} failed:\n{done.stderr.strip()[-2000:]}")
    return {(row["benchmark"], row["what"]): row for row in json.loads(written.read_text("utf-8"))["rows"]}


def compare(rounds: Sequence[tuple[Mapping[Key, Any], Mapping[Key, Any]]]) -> list[Comparison]:
    """Figures that every round has on both sides; a ratio of zeros is 1."""
    first = rounds[0][0]
    shared = [key for key in first if all(key in side for pair in rounds for side in pair)]
    found = []
    for key in shared:
        here = [pair[0][key]["value"] for pair in rounds]
        there = [pair[1][key]["value"] for pair in rounds]
        ratios = [a / b if b else (1.0 if not a else float("inf")) for a, b in zip(here, there, strict=True)]
        found.append(
            Comparison(
                benchmark=key[0],
                what=key[1],
                unit=first[key]["unit"],
                here=median(here),
                there=median(there),
                ratio=median(ratios),
                better=first[key]["better"],
            )
        )
    return found


def comparison_table(found: Sequence[Comparison], *, commit: str) -> str:
    """One line of 80 characters per figure."""
    head = f"{'':44}{'here':>13}{commit[:12]:>14}{'ratio':>9}"
    return "\n".join([head, *with_headings(found, _line)])


def _line(figure: Comparison, name: str) -> str:
    here, there = (format_value(value, figure.unit) for value in (figure.here, figure.there))
    return f"{name[:44]:44}{here:>13}{there:>14}{figure.ratio:>9.2f}"


def run_against(commit: str, arguments: Sequence[str], *, rounds: int, work: Path) -> list[Comparison]:
    """Measure both trees in turn, ``rounds`` times; errors as in the functions above."""
    results = []
    with other_tree(commit, work) as there:
        for number in range(rounds):
            order = (ROOT, there) if number % 2 == 0 else (there, ROOT)
            measured = {tree: measure_tree(tree, arguments, work) for tree in order}
            results.append((measured[ROOT], measured[there]))
    return compare(results)
