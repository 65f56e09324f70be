"""What an index is searched with: the budget a person sets, and the plan that keeps to it. Plain values.

A plan says which structure proposes candidates, with what parameters, what that costs and what was measured. It is
kept in the manifest as JSON, so that an index can say later why it is searched as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from llm2clip.common.files import format_bytes
from llm2clip.indexer.core.errors import IndexDamagedError, IndexerError

IndexKind = Literal["flat-fp16-ip", "ivf-sq8", "ivf-rabitq", "ivf-pq", "hnsw-sq8", "hnsw-fp16"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class BudgetError(IndexerError):
    """No way of searching keeps within the memory that was allowed."""


def parse_bytes(text: str) -> int:
    """``4GB``, ``500 MB`` or ``4GiB`` as a number of bytes.

    Raises:
        IndexerError: it is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None or float(match[1]) <= 0 or (match[3] and not match[2]):
        raise IndexerError(f"a size of memory is written like 4GB or 500MB, got {text!r}")
    unit = _UNITS[match[2]] if not match[3] else 1024 ** (list(_UNITS).index(match[2]))
    return int(float(match[1]) * unit)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a search may cost and how good it has to be."""

    ram: int | None = None
    """Bytes that searching and building may hold in memory; None: three quarters of what the machine has free."""
    recall: float = 0.95
    """Share of the true ten best that an answer must have, on average. 1.0 asks for an exact search."""
    p95_ms: float = 50.0
    """Milliseconds within which 95 of 100 queries, asked one at a time, must be answered."""

    def __post_init__(self) -> None:
        if self.ram is not None and self.ram < 1:
            raise IndexerError(f"the memory must be at least 1 byte, got {self.ram}")
        if not 0 < self.recall <= 1:
            raise IndexerError(f"the recall must be above 0 and at most 1, got {self.recall:g}")
        if not (self.p95_ms > 0 and math.isfinite(self.p95_ms)):
            raise IndexerError(f"the time of a query must be above 0 ms, got {self.p95_ms:g}")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a way of searching costs and how good it is."""

    bytes: int
    """Memory it wants to stay in while searching: its own file, or the stored halves where it scans those."""
    build_bytes: int
    """Memory at the peak of building it."""
    recall: float | None = None
    """Recall@10 against the exact answer; None where it was not tried."""
    p50_ms: float | None = None
    """Milliseconds of the median query, one at a time."""
    p95_ms: float | None = None
    """Milliseconds within which 95 of 100 queries are answered."""

    def text(self) -> str:
        """One line for people."""
        parts = [format_bytes(self.bytes)]
        if self.recall is not None:
            parts.append(f"recall@10 {self.recall:.3f}")
        if self.p50_ms is not None and self.p95_ms is not None:
            parts.append(f"p50 {self.p50_ms:.2f} ms, p95 {self.p95_ms:.2f} ms")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A way of searching that was considered and not taken."""

    kind: IndexKind
    """Which."""
    figures: Cost
    """What it was predicted to cost."""
    why_not: str
    """Why it was not taken."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an index is searched, and why."""

    kind: IndexKind
    """The structure that proposes candidates; ``flat-fp16-ip`` scans the stored halves and is exact."""
    factory: str
    """Its name in FAISS's ``index_factory``."""
    parameters: Mapping[str, int]
    """``lists``, ``train_rows``, ``probes``, ``effort``, ``refine`` (candidates that are ranked exactly), ``seed``."""
    rows: int
    """Vectors it was made for."""
    dim: int
    """Their length."""
    budget: Budget
    """What it had to keep to."""
    predicted: Cost
    """What was expected before it was made."""
    measured: Cost | None = None
    """What was found afterwards; None before, and where nothing was made."""
    asked: str = ""
    """What the queries were that it was tuned and measured with."""
    why: str = ""
    """Why this one was taken."""
    considered: tuple[Alternative, ...] = ()
    """The others."""

    @property
    def exact(self) -> bool:
        """Whether its answers are those of a brute force."""
        return self.kind == "flat-fp16-ip"

    @property
    def file(self) -> bool:
        """Whether it has a file of its own; the exact scan reads the segments."""
        return self.kind != "flat-fp16-ip"

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        plain = asdict(self)
        plain["considered"] = list(plain["considered"])
        return plain

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The plan that ``to_json`` gave.

        Raises:
            IndexDamagedError: it is none.
        """
        try:
            if wrong := {field.name for field in fields(cls)} ^ content.keys():
                raise TypeError(f"missing or unknown entries: {', '.join(sorted(wrong))}")
            measured = content["measured"]
            return cls(
                **{
                    **content,
                    "budget": Budget(**content["budget"]),
                    "predicted": Cost(**content["predicted"]),
                    "measured": Cost(**measured) if measured is not None else None,
                    "considered": tuple(
                        Alternative(**{**each, "figures": Cost(**each["figures"])})
                        for each in content["considered"]
                    ),
                }
            )
        except (TypeError, AttributeError, KeyError) as error:
            raise IndexDamagedError(
                f"the plan of the index has an entry of the wrong form: {error}"
            ) from error

    def lines(self) -> list[str]:
        """The plan for people, a line per fact."""
        names = ", ".join(f"{name} {value:,}" for name, value in self.parameters.items())
        found = [f"{self.kind} over {self.rows:,} x {self.dim}: {self.why}"]
        if names:
            found.append(f"made as {self.factory} with {names}")
        found.append(f"predicted: {self.predicted.text()}")
        if self.measured is not None:
            found.append(f"measured:  {self.measured.text()}" + (f" ({self.asked})" if self.asked else ""))
        found += [f"not {each.kind}: {each.why_not} ({each.figures.text()})" for each in self.considered]
        return found


def flat_plan(rows: int, dim: int, *, budget: Budget | None = None, why: str = "exact") -> Plan:
    """The plan of an exact scan of the stored halves, which needs nothing made."""
    figures = Cost(bytes=rows * dim * 2, build_bytes=0, recall=1.0)
    return Plan(
        kind="flat-fp16-ip",
        factory="SQfp16",
        parameters={},
        rows=rows,
        dim=dim,
        budget=budget or Budget(),
        predicted=figures,
        why=why,
    )
