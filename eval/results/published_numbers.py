"""The published table: 21,946 values of retrieval with their sources, and what is known to be wrong with some.

``data/published.csv.gz`` holds the values as printed, ``data/published.toml`` the flags, the tolerances within which a
rerun should lie, and which names mean the same weights.
"""

from __future__ import annotations

import csv
import gzip
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llm2clip.eval.results.records import Direction, EncoderRecord

_DATA = Path(__file__).parent.parent / "data"
_VALUES = _DATA / "published.csv.gz"
_FIELDS = ["dataset", "model", "hf_id", "direction", "k", "value", "source"]

Status = Literal["", "wrong", "unclear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One published value."""

    dataset: str
    """Protocol, with ``:language`` or a mean such as ``:avg36`` where there are several."""
    model: str
    """What the source calls the model; a harness and a colon before it where a harness ran it."""
    hf_id: str
    """The checkpoint on the Hugging Face hub; empty where it is unknown."""
    direction: Direction
    k: int
    value: float
    """Percent, as printed."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What is known to be wrong with a row."""

    status: Status
    """``wrong``: no target; ``unclear``: accepted only for lack of a better one; empty: nothing."""
    reason: str = ""
    reason_zh: str = ""


NO_FLAG = Flag(status="")


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a rerun may lie from a row."""

    points: float
    information: bool
    """Whether nothing is concluded from it."""
    why: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One of our numbers beside one that was published for the same weights under the same protocol."""

    row: Published
    ours: float
    tolerance: Tolerance
    flag: Flag

    @property
    def difference(self) -> float:
        """Ours minus theirs, in points."""
        return self.ours - self.row.value

    @property
    def within(self) -> bool | None:
        """Whether the difference is within the tolerance; None where the row decides nothing."""
        if self.tolerance.information or self.flag.status:
            return None
        # Half of the last printed digit is not a real difference.
        decimals = len(repr(self.row.value).partition(".")[2])
        return bool(abs(self.difference) <= self.tolerance.points + 0.5 / 10**decimals + 1e-9)


@cache
def published_rows() -> tuple[Published, ...]:
    """Every value, in the order of the file.

    Raises:
        ValueError: The file has other columns, or a value that is invalid.
    """
    with gzip.open(_VALUES, "rt", encoding="utf-8", newline="") as text:
        reader = csv.reader(text)
        if (header := next(reader)) != _FIELDS:
            raise ValueError(f"{_VALUES.name} has columns {header}, expected {_FIELDS}")
        return tuple(_row(*line) for line in reader)


def _row(dataset: str, model: str, hf_id: str, direction: str, k: str, value: str, source: str) -> Published:
    if direction not in ("t2i", "i2t"):
        raise ValueError(f"{_VALUES.name}: got direction {direction!r}, expected t2i or i2t")
    return Published(
        dataset=dataset,
        model=model,
        hf_id=hf_id,
        direction="t2i" if direction == "t2i" else "i2t",
        k=int(k),
        value=float(value),
        source=source,
    )


@cache
def _known() -> dict[str, Any]:
    return tomllib.loads((_DATA / "published.toml").read_text(encoding="utf-8"))


def licence_note(language: str = "en") -> str:
    """The terms on which the values are shipped."""
    return str(_known()["licence_zh" if language == "zh" else "licence"])


def flag_of(row: Published) -> Flag:
    """What is known to be wrong with a row."""
    for entry in _known()["flag"]:
        if _fits(entry, row):
            status: Status = "wrong" if entry["status"] == "wrong" else "unclear"
            return Flag(status=status, reason=entry["reason"], reason_zh=entry["reason_zh"])
    return NO_FLAG


def tolerance_of(row: Published, *, queries: int) -> Tolerance:
    """How far a rerun with this many queries may lie from a row."""
    entry = next(entry for entry in _known()["tolerance"] if _fits(entry, row))
    return Tolerance(
        points=float(entry["large" if queries >= 5000 else "small"]),
        information=bool(entry.get("information", False)),
        why=entry["why"],
    )


def _fits(entry: dict[str, Any], row: Published) -> bool:
    return (
        entry.get("source", "") in row.source
        and entry.get("direction", row.direction) == row.direction
        and _matches(entry.get("model"), row.model)
        and _matches(entry.get("dataset"), row.dataset)
    )


def _matches(globs: str | list[str] | None, text: str) -> bool:
    if globs is None:
        return True
    return any(fnmatchcase(text, glob) for glob in (globs if isinstance(globs, list) else [globs]))


def hub_names(encoder: EncoderRecord) -> frozenset[str]:
    """The names under which the table may have an encoder's weights; empty for one that was never published."""
    if not encoder.repository:
        return frozenset()
    return frozenset(_known()["weights"].get(encoder.name, [encoder.repository]))


def same_weights(encoder: EncoderRecord, *, dataset: str) -> list[Published]:
    """The rows of the same weights under one protocol, wrong ones included."""
    names = hub_names(encoder)
    return [row for row in of_dataset(dataset) if row.hf_id in names]


@cache
def _by_dataset() -> dict[str, list[Published]]:
    found: dict[str, list[Published]] = {}
    for row in published_rows():
        found.setdefault(row.dataset, []).append(row)
    return found


def of_dataset(dataset: str) -> Sequence[Published]:
    """The rows of one protocol."""
    return _by_dataset().get(dataset, [])


def compare_value(row: Published, *, ours: float, queries: int) -> Comparison:
    """Put one of our shares, in [0, 1], beside a published row; ``queries`` is our denominator."""
    return Comparison(
        row=row, ours=100.0 * ours, tolerance=tolerance_of(row, queries=queries), flag=flag_of(row)
    )
