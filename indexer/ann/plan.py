"""The search budget of a user and the plan that keeps to it, as plain values.

A plan names the ANN index, its parameters, its predicted cost and what was measured. It is stored in the manifest as
JSON, so that an index can explain later how it is searched and why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from llm2clip.common.files import format_bytes
from llm2clip.indexer.core.errors import IndexDamagedError, IndexerError

IndexType = Literal["flat-fp16-ip", "ivf-sq8", "ivf-rabitq", "ivf-pq", "hnsw-sq8", "hnsw-fp16"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_STORED_NAMES = {"nlist": "lists", "nprobe": "probes", "M": "links", "ef_construction": "build_effort"}
"""Parameters whose names in the manifest are older; ``ef_search`` is stored as ``probes`` too."""


class BudgetError(IndexerError):
    """No way of searching fits the memory budget."""


def parse_bytes(text: str) -> int:
    """``4GB``, ``500 MB`` or ``4GiB`` as a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None or float(match[1]) <= 0 or (match[3] and not match[2]):
        raise IndexerError(f"expected a memory size like 4GB or 500MB, got {text!r}")
    unit = _UNITS[match[2]] if not match[3] else 1024 ** (list(_UNITS).index(match[2]))
    return int(float(match[1]) * unit)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Target memory, recall and latency of a search."""

    ram: int | None = None
    """Bytes for searching and for building; None: three quarters of the memory that is free."""
    recall: float = 0.95
    """Target recall@10. 1.0 asks for an exact search."""
    p95_ms: float = 50.0
    """Target 95th percentile of the latency of one query at a time, in milliseconds."""

    def __post_init__(self) -> None:
        if self.ram is not None and self.ram < 1:
            raise IndexerError(f"the memory must be at least 1 byte, got {self.ram}")
        if not 0 < self.recall <= 1:
            raise IndexerError(f"the recall must be above 0 and at most 1, got {self.recall:g}")
        if not (self.p95_ms > 0 and math.isfinite(self.p95_ms)):
            raise IndexerError(f"the latency must be above 0 ms, got {self.p95_ms:g}")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost and quality of a way of searching."""

    bytes: int
    """Memory while searching: the file of the ANN index, or the stored float16 vectors where those are scanned."""
    build_bytes: int
    """Peak memory while building."""
    recall: float | None = None
    """Recall@10 against the exact answer; None: not tried."""
    p50_ms: float | None = None
    """Median latency of one query at a time, in milliseconds."""
    p95_ms: float | None = None
    """95th percentile of that latency."""

    def text(self) -> str:
        """One line of text."""
        parts = [format_bytes(self.bytes)]
        if self.recall is not None:
            parts.append(f"recall@10 {self.recall:.3f}")
        if self.p50_ms is not None and self.p95_ms is not None:
            parts.append(f"p50 {self.p50_ms:.2f} ms, p95 {self.p95_ms:.2f} ms")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A type of index that was considered and not chosen."""

    kind: IndexType
    figures: Cost
    """Its predicted cost."""
    why_not: str
    """Why it was not chosen."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an index is searched, and why."""

    kind: IndexType
    """The ANN index; ``flat-fp16-ip`` is an exact scan of the stored float16 vectors."""
    factory: str
    """Its name in FAISS's ``index_factory``."""
    parameters: Mapping[str, int]
    """``nlist`` and ``nprobe``, or ``M``, ``ef_construction`` and ``ef_search``; ``train_rows``, ``seed``, and
    ``refine`` (candidates re-ranked per hit)."""
    rows: int
    dim: int
    budget: Budget
    """What it had to keep to."""
    predicted: Cost
    """Cost predicted before it was built."""
    measured: Cost | None = None
    """Cost measured afterwards; None where nothing was built or measured."""
    asked: str = ""
    """What queries it was tuned and measured with."""
    why: str = ""
    """Why it was chosen."""
    considered: tuple[Alternative, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether its answers are exact. It then has no file of its own: the segments are scanned."""
        return self.kind == "flat-fp16-ip"

    def to_json(self) -> dict[str, Any]:
        """The plan as the manifest stores it."""
        plain = asdict(self)
        names = {**_STORED_NAMES, "ef_search": "probes"}
        plain["parameters"] = {names.get(name, name): value for name, value in self.parameters.items()}
        plain["considered"] = list(plain["considered"])
        return plain

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The plan that ``to_json`` gave."""
        try:
            if wrong := {field.name for field in fields(cls)} ^ content.keys():
                raise TypeError(f"missing or unknown entries: {', '.join(sorted(wrong))}")
            names = {stored: name for name, stored in _STORED_NAMES.items()}
            if str(content["kind"]).startswith("hnsw"):
                names["probes"] = "ef_search"
            measured = content["measured"]
            plan = cls(
                **{
                    **content,
                    "parameters": {names.get(name, name): n for name, n in content["parameters"].items()},
                    "budget": Budget(**content["budget"]),
                    "predicted": Cost(**content["predicted"]),
                    "measured": Cost(**measured) if measured is not None else None,
                    "considered": tuple(
                        Alternative(**{**each, "figures": Cost(**each["figures"])})
                        for each in content["considered"]
                    ),
                }
            )
            plan._check()
            return plan
        except (TypeError, AttributeError, KeyError) as error:
            raise IndexDamagedError(f"the plan of the index has an invalid entry: {error}") from error

    def _check(self) -> None:
        """Refuse values of other types, and sizes that FAISS would allocate: the plan may come from a stranger."""
        costs = [self.predicted, *filter(None, [self.measured]), *(each.figures for each in self.considered)]
        numbers = [value for cost in costs for value in asdict(cost).values() if value is not None]
        numbers += [value for value in asdict(self.budget).values() if value is not None]
        counts = [self.rows, self.dim, *self.parameters.values()]
        texts = [self.kind, self.factory, self.asked, self.why, *(each.kind for each in self.considered)]
        texts += [each.why_not for each in self.considered]
        if not all(type(value) in (int, float) for value in numbers):
            raise TypeError("expected numbers as costs")
        if not all(type(value) is int and 0 <= value < 2**48 for value in counts):
            raise TypeError("expected counts as parameters")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("expected texts")
        most = max(self.rows, self.dim, 64)
        if len(self.factory) > 80 or any(int(digits) > most for digits in re.findall(r"\d+", self.factory)):
            raise TypeError(f"factory {self.factory[:80]!r} is too large for {self.rows:,} rows")

    def lines(self) -> list[str]:
        """The plan as text, a line per fact."""
        names = ", ".join(f"{name} {value:,}" for name, value in self.parameters.items())
        found = [f"{self.kind} over {self.rows:,} x {self.dim}: {self.why}"]
        if names:
            found.append(f"built as {self.factory} with {names}")
        found.append(f"predicted: {self.predicted.text()}")
        if self.measured is not None:
            found.append(f"measured:  {self.measured.text()}" + (f" ({self.asked})" if self.asked else ""))
        found += [f"not {each.kind}: {each.why_not} ({each.figures.text()})" for each in self.considered]
        return found
