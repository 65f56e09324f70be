"""Two encoders on the same data sets: which is better, and how certain that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from llm2clip.common.terminal import escape_control
from llm2clip.eval.report.markdown import ARROWS
from llm2clip.eval.results.records import Direction, Result, unpack
from llm2clip.eval.stats.bootstrap import Resampling
from llm2clip.eval.stats.paired_tests import PairedTest, holm, paired_test

_SURE = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two encoders on one data set, in one direction, at R@1."""

    dataset: str
    direction: Direction
    first: float
    second: float
    test: PairedTest
    """The difference over the same queries, first minus second."""
    p_value: float
    """Of the test, corrected by Holm for all lines of the table."""

    @property
    def sure(self) -> bool:
        """Whether the difference is significant at 95 %, all lines together."""
        return self.p_value < _SURE


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All that two encoders can be compared on."""

    first: str
    second: str
    lines: tuple[Difference, ...]
    skipped: tuple[str, ...]
    """Data sets of which both have a result, but on other images or captions."""


def compare_encoders(
    results: Sequence[Result], first: str, second: str, *, resampling: Resampling | None = None
) -> Compared:
    """Test two encoders over the queries that both were measured on.

    Args:
        results: Any results, theirs among them.
        first: Label of an encoder, or the beginning of its hash.
        second: Likewise.
        resampling: Draws and seed of the tests.

    Raises:
        ValueError: An encoder has no result, a label is ambiguous, or there is no data set in common.
    """
    ours, theirs = _of(results, first), _of(results, second)
    who = [{(one.encoder.key, one.encoder.label) for one in own.values()} for own in (ours, theirs)]
    if who[0] == who[1]:
        raise ValueError(f"{first!r} and {second!r} are the same encoder, expected two; {_labels(results)}")
    common = [name for name in ours if name in theirs]
    same = [name for name in common if ours[name].set.sha256 == theirs[name].set.sha256]
    if not same:
        reason = f"their queries differ on {', '.join(common)}" if common else "no set is common to both"
        raise ValueError(f"{first!r} and {second!r} cannot be compared: {reason}; measure both on one set")
    found = [
        (name, direction, *_test(ours[name], theirs[name], direction, resampling))
        for name in same
        for direction in (one.direction for one in ours[name].directions if one.ranks)
        if theirs[name].direction(direction)
    ]
    adjusted = holm([test.p_value for *_, test in found])
    return Compared(
        first=next(iter(ours.values())).encoder.label,
        second=next(iter(theirs.values())).encoder.label,
        lines=tuple(
            Difference(dataset=name, direction=direction, first=a, second=b, test=test, p_value=p_value)
            for (name, direction, a, b, test), p_value in zip(found, adjusted, strict=True)
        ),
        skipped=tuple(name for name in common if name not in same),
    )


def _of(results: Sequence[Result], asked: str) -> dict[str, Result]:
    """The results of one encoder by data set."""
    found = [one for one in results if one.encoder.label == asked]
    found = found or [one for one in results if len(asked) >= 6 and one.encoder.key.startswith(asked)]
    if not found:
        raise ValueError(
            f"no result of encoder {asked!r}, expected a label or the first six digits of its hash; {_labels(results)}"
        )
    keys = {one.encoder.key for one in found}
    if len(keys) > 1:
        hashes = ", ".join(sorted(key[:12] for key in keys))
        raise ValueError(f"{asked!r} matches {len(keys)} encoders; name one by its hash: {hashes}")
    by_set: dict[str, Result] = {}
    for one in found:
        earlier = by_set.setdefault(one.set.id, one)
        if earlier.set.sha256 != one.set.sha256:
            raise ValueError(
                f"two results of {asked!r} on {one.set.id} have different images or captions ({earlier.date} and "
                f"{one.date}): leave one out"
            )
    return by_set


def _labels(results: Sequence[Result]) -> str:
    found = {(one.encoder.label, one.encoder.key[:12]) for one in results}
    return "results exist for: " + ", ".join(f"{label} ({key})" for label, key in sorted(found))


def _test(
    first: Result, second: Result, direction: Direction, resampling: Resampling | None
) -> tuple[float, float, PairedTest]:
    one, other = first.direction(direction), second.direction(direction)
    assert one is not None
    assert other is not None
    hits = [(unpack(each.ranks) <= 1).astype(np.float64) for each in (one, other)]
    clusters = unpack(one.clusters).astype(np.int64)
    test = paired_test(hits[0], hits[1], clusters=clusters, resampling=resampling)
    return float(hits[0].mean()), float(hits[1].mean()), test


def conclusion(compared: Compared) -> list[str]:
    """The result of the comparison, in sentences."""
    better = sum(line.sure and line.test.difference > 0 for line in compared.lines)
    worse = sum(line.sure and line.test.difference < 0 for line in compared.lines)
    undecided = len(compared.lines) - better - worse
    total = f"{len(compared.lines)} comparison" + "s" * (len(compared.lines) != 1)
    first, second = compared.first, compared.second
    if better and worse:
        said = f"neither is better throughout: {first} in {better}, {second} in {worse} of {total}"
    elif better or worse:
        winner, loser = (first, second) if better else (second, first)
        said = f"{winner} is better than {loser} in {better or worse} of {total}"
    else:
        said = f"{first} and {second} cannot be distinguished in any of {total}"
    lines = [f"{said}; {undecided} undecided (R@1, all claims together at 95 %)."]
    if compared.skipped:
        lines.append(f"Skipped, as the queries differ: {', '.join(compared.skipped)}.")
    return [escape_control(line) for line in lines]


def comparison_table(compared: Compared) -> Table:
    """The comparison for a terminal of 80 columns or more; differences in points of R@1, with 95 % intervals."""
    title = Text(escape_control(f"{compared.first} against {compared.second}, R@1"))
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("set", overflow="fold")
    for head in ("first\nsecond", "difference", "only first\nonly second", "effect", "p, corrected"):
        table.add_column(head, justify="right", no_wrap=True)
    for line in compared.lines:
        test = line.test
        table.add_row(
            Text(f"{escape_control(line.dataset)}\n{ARROWS[line.direction]}"),
            f"{100 * line.first:.1f}\n{100 * line.second:.1f}",
            f"{100 * test.difference:+.1f}\n{100 * test.low:+.1f} to {100 * test.high:+.1f}",
            f"{test.wins:,}\n{test.losses:,}",
            f"{test.effect:+.2f}",
            f"{line.p_value:.2g}\n{'sure' if line.sure else 'undecided'}",
            style="bold" if line.sure else "dim",
        )
    return table
