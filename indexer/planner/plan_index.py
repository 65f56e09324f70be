"""Chooses how an index is searched: exactly while that is fast enough, else by an ANN index that keeps to a budget.

Sizes are computed, recall and latency are measured on a random sample before anything large is built, and again on the
whole index afterwards. What would not fit into memory is refused at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import format_bytes, free_memory
from llm2clip.indexer.ann.faiss_flat import write_faiss
from llm2clip.indexer.ann.index_types import APPROXIMATE, estimate_cost, plan_for, unsupported_reason
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex, sample_of
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.ann.plan import Alternative, Budget, BudgetError, Cost, IndexType, Plan
from llm2clip.indexer.core.results import StoredVectors
from llm2clip.indexer.planner.tune import exact_latency, measure, sample_queries, tune
from llm2clip.indexer.storage.vector_segments import Vectors

TRIAL_ROWS = 20_000
"""Sample size of the trials."""
EXACT_ROWS = 1_000
"""An index of at most so many rows is always searched exactly, regardless of its measured latency."""
_FEW_ROWS = f"up to {EXACT_ROWS:,} vectors are always searched exactly"
_FREE_SHARE = 0.75
"""Default memory budget, as a share of the memory that is free."""
_TRIAL_SLACK = 0.01
"""A trial's recall is that of a few hundred queries: so little below the target still counts as reaching it."""
_EXACT_P95 = 1.15
"""95th percentile of the latency of an exact scan, as a multiple of its median."""


@dataclass(frozen=True, kw_only=True)
class BudgetPlanner:
    """Chooses, builds and tunes an ANN index that keeps to a budget; handed to a build."""

    budget: Budget
    queries: Callable[[], NDArray[np.float32] | None] = lambda: None
    """Returns text queries to tune with, None if there are none. Shape: (n, dim), float32, unit rows."""
    say: Callable[[str], None] = lambda line: None
    """Is called with each line about the plan and what was measured."""
    device: str = "auto"
    """Where ANN indexes are trained if FAISS has a GPU: ``auto``, ``cuda``, ``cuda:1``; or ``cpu``."""

    def __call__(self, path: Path, vectors: StoredVectors) -> Mapping[str, Any]:
        """Write the ANN index to ``path`` and return its plan as JSON."""
        queries = self.queries()
        plan = plan_index(vectors, budget=self.budget, queries=queries, device=self.device)
        if plan.exact:
            write_faiss(path, vectors.blocks(), rows=len(vectors), dim=vectors.dim)
        made = make_ann(path, vectors, plan=plan, queries=queries, device=self.device)
        for line in made.lines():
            self.say(line)
        return made.to_json()


def plan_index(
    vectors: StoredVectors,
    *,
    budget: Budget,
    queries: NDArray[np.float32] | None = None,
    device: str = "auto",
) -> Plan:
    """Choose how ``vectors`` are searched. Builds nothing but trials on a sample.

    Latencies are those of this machine with its present load. Queries have the shape (n, dim), float32, unit rows.
    """
    ram = budget.ram if budget.ram is not None else int(free_memory() * _FREE_SHARE)
    budget = replace(budget, ram=ram)
    trial = _Trial(vectors, budget=budget, queries=queries, device=device)
    exact = trial.exact()
    small = len(vectors) <= EXACT_ROWS
    if exact.figures.bytes <= ram and (not exact.why_not or budget.recall >= 1 or small):
        slow = "only an exact scan has a recall of 1" if budget.recall >= 1 else _FEW_ROWS
        return trial.plan(exact, why=slow if exact.why_not else "an exact scan is fast enough")
    tried = [exact, *(trial.approximate() if budget.recall < 1 else ())]
    eligible = [each for each in tried if each.figures.recall is not None and each.figures.bytes <= ram]
    if not eligible:
        raise BudgetError(_refusal(tried, ram=ram, rows=len(vectors), dim=vectors.dim))
    best = min(eligible, key=lambda each: (bool(each.why_not), _distance(each.figures, budget)))
    why = "the first within the budget"
    if best.why_not:
        why = f"none is within the budget, this is the closest: {best.why_not}"
    return trial.plan(best, why=why, considered=[each for each in tried if each is not best])


def require_memory(budget: Budget, *, rows: int, dim: int) -> None:
    """Refuse, before anything is encoded, what no type of index could do within the memory budget."""
    if budget.ram is None or not rows:
        return
    types: tuple[IndexType, ...] = ("flat-fp16-ip", *(() if budget.recall >= 1 else APPROXIMATE))
    options = [_option(kind, rows=rows, dim=dim, ram=budget.ram) for kind in types]
    if all(each.why_not for each in options):
        raise BudgetError(_refusal(options, ram=budget.ram, rows=rows, dim=dim))


def make_ann(
    path: Path,
    vectors: StoredVectors,
    *,
    plan: Plan,
    queries: NDArray[np.float32] | None = None,
    device: str = "auto",
) -> Plan:
    """Build the ANN index of a plan, tune it on held-out queries and measure it on others.

    Returns the plan with the tuned parameters and the measured cost; writes nothing for an exact plan.
    """
    asked = sample_queries(vectors, queries)
    found = plan
    if plan.exact:
        measured = measure(KnnSearcher(vectors), asked.half(1), cost=plan.predicted)
    else:
        write_ann(path, vectors, plan=plan, device=device)
        cost = replace(plan.predicted, bytes=path.stat().st_size)
        index = FaissAnnIndex.read(path, plan=plan)
        parameters = tune(index, vectors, asked.half(0), recall=plan.budget.recall)
        found = replace(plan, parameters={**plan.parameters, **parameters})
        index = FaissAnnIndex.read(path, plan=found)
        measured = measure(KnnSearcher(vectors, candidates=index), asked.half(1), cost=cost)
    return replace(found, measured=measured, asked=asked.kind)


def renewed(plan: Plan, *, rows: int) -> Plan:
    """The same plan for another number of rows, as when an index has grown."""
    if plan.rows == rows:
        return plan
    fresh = plan_for(plan.kind, rows=rows, dim=plan.dim, budget=plan.budget)
    return replace(fresh, asked=plan.asked, why=plan.why, considered=plan.considered)


def write_ann(path: Path, vectors: StoredVectors, *, plan: Plan, device: str = "auto") -> None:
    """Build the ANN index of a plan from the stored rows and write it.

    On a CPU the same rows and plan give the same bytes; if FAISS has a GPU, k-means runs there.
    """
    need, free = plan.predicted.build_bytes, free_memory()
    if need > free:
        raise BudgetError(
            f"building {plan.kind} of {plan.rows:,} vectors needs {format_bytes(need)} of memory, "
            f"{format_bytes(free)} are free: close other programs, or set a smaller --ram"
        )
    parameters = plan.parameters
    sample = sample_of(vectors, parameters["train_rows"], rows=plan.rows, seed=parameters["seed"])
    blocks = ((first, rows[: plan.rows - first]) for first, rows in vectors.blocks() if first < plan.rows)
    FaissAnnIndex.build(blocks, sample=sample, plan=plan, device=device).write(path)


class _Trial:
    """Tries types of index on a random sample of the rows."""

    def __init__(
        self, vectors: StoredVectors, *, budget: Budget, queries: NDArray[np.float32] | None, device: str
    ) -> None:
        self._rows, self._dim, self._budget, self._device = len(vectors), vectors.dim, budget, device
        self._ram = budget.ram or 0
        self._sample = vectors
        if len(vectors) > TRIAL_ROWS:
            ids = np.random.default_rng(0).choice(len(vectors), size=TRIAL_ROWS, replace=False)
            self._sample = Vectors([vectors.take(np.sort(ids))], dim=vectors.dim)
        self._asked = sample_queries(self._sample, queries)

    def exact(self) -> Alternative:
        """An exact scan, its latency extrapolated from the sample."""
        p50 = exact_latency(self._sample, self._asked.queries, rows=self._rows)
        cost = estimate_cost("flat-fp16-ip", rows=self._rows, dim=self._dim)
        cost = replace(cost, recall=1.0, p50_ms=round(p50, 4), p95_ms=round(p50 * _EXACT_P95, 4))
        return Alternative(kind="flat-fp16-ip", figures=cost, why_not=_shortfall(cost, self._budget))

    def approximate(self) -> Iterable[Alternative]:
        """Each type of ANN index; ``why_not`` is empty for the first that keeps to the budget, if any does."""
        chosen: IndexType | None = None
        for kind in APPROXIMATE:
            option = _option(kind, rows=self._rows, dim=self._dim, ram=self._ram)
            if not option.why_not and chosen is not None:
                option = replace(option, why_not=f"not tried: {chosen} is within the budget")
            elif not option.why_not:
                cost = self._run(kind, option.figures)
                option = replace(option, figures=cost, why_not=_shortfall(cost, self._budget))
                chosen = None if option.why_not else kind
            yield option

    def _run(self, kind: IndexType, cost: Cost) -> Cost:
        """Build and tune a type of index on the sample, and extrapolate its latency to all rows."""
        rows = len(self._sample)
        plan = plan_for(kind, rows=rows, dim=self._dim, budget=self._budget)
        train = sample_of(self._sample, plan.parameters["train_rows"], rows=rows, seed=0)
        index = FaissAnnIndex.build(self._sample.blocks(), sample=train, plan=plan, device=self._device)
        found = tune(index, self._sample, self._asked.half(0), recall=self._budget.recall)
        tuned = replace(plan, parameters={**plan.parameters, **found})
        index = FaissAnnIndex(index.faiss_index, plan=tuned)
        measured = measure(KnnSearcher(self._sample, candidates=index), self._asked.half(1), cost=cost)
        assert measured.p50_ms is not None
        assert measured.p95_ms is not None
        factor = _latency_factor(kind, self._rows, rows)
        return replace(
            measured, p50_ms=round(measured.p50_ms * factor, 4), p95_ms=round(measured.p95_ms * factor, 4)
        )

    def plan(self, option: Alternative, *, why: str, considered: Iterable[Alternative] = ()) -> Plan:
        """A plan for all rows."""
        made = plan_for(option.kind, rows=self._rows, dim=self._dim, budget=self._budget)
        return replace(made, predicted=option.figures, why=why, considered=tuple(considered))


def _option(kind: IndexType, *, rows: int, dim: int, ram: int) -> Alternative:
    """A type of index with its size; ``why_not`` says why it cannot be built within the memory budget."""
    cost = estimate_cost(kind, rows=rows, dim=dim)
    problem = unsupported_reason(kind, rows=rows, dim=dim)
    if problem is None and cost.bytes > ram:
        problem = f"needs {format_bytes(cost.bytes)} to search, the limit is {format_bytes(ram)}"
    if problem is None and cost.build_bytes > ram:
        problem = f"needs {format_bytes(cost.build_bytes)} to build, the limit is {format_bytes(ram)}"
    return Alternative(kind=kind, figures=cost, why_not=problem or "")


def _latency_factor(kind: IndexType, rows: int, sample: int) -> float:
    """How much longer a query takes over all rows: IVF grows with the root, graphs with the logarithm."""
    if rows <= sample:
        return 1.0
    if kind.startswith("hnsw"):
        return 1.5 * math.log(rows) / math.log(sample)
    return math.sqrt(rows / sample)


def _shortfall(cost: Cost, budget: Budget) -> str:
    """In what a way of searching misses the budget; empty if in nothing."""
    missed = []
    if cost.bytes > (budget.ram or 0):
        missed.append(f"needs {format_bytes(cost.bytes)}, the limit is {format_bytes(budget.ram or 0)}")
    if cost.recall is not None and cost.recall < budget.recall - _TRIAL_SLACK:
        missed.append(f"recall@10 of {cost.recall:.3f} on a sample, target {budget.recall:g}")
    if cost.p95_ms is not None and cost.p95_ms > budget.p95_ms:
        missed.append(f"p95 of {cost.p95_ms:.2f} ms, target {budget.p95_ms:g}")
    return "; ".join(missed)


def _distance(cost: Cost, budget: Budget) -> float:
    """Distance from the budget: missing recall first, then latency."""
    missing = max(0.0, budget.recall - (cost.recall or 0.0))
    return missing * 1e6 + (cost.p95_ms or 0.0)


def _refusal(options: Iterable[Alternative], *, ram: int, rows: int, dim: int) -> str:
    def needed(each: Alternative) -> int:
        return max(each.figures.bytes, each.figures.build_bytes)

    least = min(options, key=needed)
    building = " to build" if least.figures.build_bytes > least.figures.bytes else ""
    return (
        f"{rows:,} vectors of dimension {dim} cannot be searched within {format_bytes(ram)} of memory: "
        f"the smallest type, {least.kind}, needs {format_bytes(needed(least))}{building}. Allow more with --ram, or "
        "index fewer images"
    )
