"""The published table: 21,946 values of retrieval with their sources, and what is known to be wrong with some.

``data/published.csv.gz`` holds the values as printed, ``data/published.toml`` the marks, the bands within which a
rerun should lie, and which names mean the same weights.
"""

from __future__ import annotations

import csv
import gzip
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal

from llm2clip.eval.results.records import Direction, EncoderRecord

_DATA = Path(__file__).parent.parent / "data"
_VALUES = _DATA / "published.csv.gz"
_KNOWN = _DATA / "published.toml"
_FIELDS = ["dataset", "model", "hf_id", "direction", "k", "value", "source"]

Status = Literal["", "wrong", "unclear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One printed value."""

    dataset: str
    """Protocol, with ``:language`` or a mean such as ``:avg36`` where there are several."""
    model: str
    """What the source calls the model; a harness and a colon before it where a harness ran it."""
    hf_id: str
    """The checkpoint on the Hugging Face hub; empty where it cannot be told."""
    direction: Direction
    """Text to image or image to text."""
    k: int
    """Length of the list of answers."""
    value: float
    """Percent, as printed."""
    source: str
    """Where it is printed."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What is the matter with a row."""

    status: Status
    """``wrong``: no target; ``unclear``: believed only for want of better; empty: nothing."""
    reason: str = ""
    """In English."""
    reason_zh: str = ""
    """In Chinese."""


NO_MARK = Flag(status="")
"""Nothing is the matter."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a rerun may lie from a row."""

    points: float
    """Of recall, to either side."""
    information: bool
    """Whether nothing is concluded from it."""
    why: str
    """Why so wide."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One of our numbers beside one that was printed for the same weights under the same protocol."""

    row: Published
    """The printed one."""
    ours: float
    """Percent."""
    band: Tolerance
    """How far apart they may lie."""
    mark: Flag
    """What is the matter with the printed one."""

    @property
    def difference(self) -> float:
        """Ours less theirs, in points."""
        return self.ours - self.row.value

    @property
    def within(self) -> bool | None:
        """Whether the difference lies within the band; None where the row decides nothing."""
        if self.band.information or self.mark.status:
            return None
        # Half of the last printed digit is nobody's difference.
        decimals = len(repr(self.row.value).partition(".")[2])
        return bool(abs(self.difference) <= self.band.points + 0.5 / 10**decimals + 1e-9)


@cache
def published_rows() -> tuple[Published, ...]:
    """Every value, in the order of the file.

    Raises:
        ValueError: The file is not what it should be.
    """
    with gzip.open(_VALUES, "rt", encoding="utf-8", newline="") as text:
        reader = csv.reader(text)
        if (header := next(reader)) != _FIELDS:
            raise ValueError(f"{_VALUES.name} has columns {header}, expected {_FIELDS}")
        return tuple(_row(line) for line in reader)


def _row(line: Sequence[str]) -> Published:
    dataset, model, hf_id, direction, k, value, source = line
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
def _known() -> Mapping[str, object]:
    return tomllib.loads(_KNOWN.read_text(encoding="utf-8"))


def licence_note(language: str = "en") -> str:
    """On what terms the values are here."""
    return str(_known()["licence_zh" if language == "zh" else "licence"])


def mark(row: Published) -> Flag:
    """What is known to be the matter with a row."""
    for entry in _entries("mark"):
        if _fits(entry, row):
            status: Status = "wrong" if entry["status"] == "wrong" else "unclear"
            return Flag(status=status, reason=str(entry["reason"]), reason_zh=str(entry["reason_zh"]))
    return NO_MARK


def band(row: Published, *, queries: int) -> Tolerance:
    """How far a rerun with this many queries may lie from a row."""
    entry = next(entry for entry in _entries("band") if _fits(entry, row))
    points = entry["large" if queries >= 5000 else "small"]
    assert isinstance(points, int | float)
    return Tolerance(
        points=float(points), information=bool(entry.get("information", False)), why=str(entry["why"])
    )


def _entries(name: str) -> list[dict[str, object]]:
    found = _known()[name]
    assert isinstance(found, list)
    return found


def _fits(entry: Mapping[str, object], row: Published) -> bool:
    if str(entry.get("source", "")) not in row.source:
        return False
    if entry.get("direction", row.direction) != row.direction:
        return False
    return _any_glob(entry.get("model"), row.model) and _any_glob(entry.get("dataset"), row.dataset)


def _any_glob(globs: object, text: str) -> bool:
    if globs is None:
        return True
    return any(fnmatchcase(text, str(glob)) for glob in (globs if isinstance(globs, list) else [globs]))


def hub_names(encoder: EncoderRecord) -> frozenset[str]:
    """The names under which the table may have an encoder's weights; empty for one that was never published."""
    weights = _known()["weights"]
    assert isinstance(weights, dict)
    if not encoder.repository:
        return frozenset()
    return frozenset(weights.get(encoder.name, [encoder.repository]))


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
    """Put one of our shares beside a printed row.

    Args:
        row: The printed row.
        ours: Our share, in [0, 1].
        queries: In our denominator.
    """
    return Comparison(row=row, ours=100.0 * ours, band=band(row, queries=queries), mark=mark(row))
