"""Chooses how an index is searched: exactly while that is fast enough, else by what keeps to a budget.

Sizes are reckoned, times and recall are tried on a random sample before anything large is made, and measured on the
whole afterwards. What would not fit into memory is refused before it is begun.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import format_bytes
from llm2clip.common.memory import free_memory
from llm2clip.indexer.ann.faiss_flat import write_faiss
from llm2clip.indexer.ann.index_types import (
    APPROXIMATE,
    estimate_cost,
    factory_of,
    parameters_of,
    unsupported_reason,
)
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex, sample_of
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.ann.plan import Alternative, Budget, BudgetError, Cost, IndexKind, Plan
from llm2clip.indexer.planner.tune import exact_times, measure, sample_queries, tune
from llm2clip.indexer.storage.manifest import KIND
from llm2clip.indexer.storage.vector_segments import Vectors

TRIAL_ROWS = 20_000
"""Rows of the sample on which kinds are tried."""
_FREE_SHARE = 0.75
"""Of the memory that is free, what may be used where nobody says."""
_TRIAL_SLACK = 0.01
"""A trial's recall is that of a few hundred queries: so little below what is asked for is no miss."""
_STEADY = 1.15
"""The times of an exact scan vary so little that 95 of 100 queries lie below this multiple of the median."""


@dataclass(frozen=True, kw_only=True)
class BudgetPlanner:
    """Chooses, makes and tunes what keeps to a budget: what a build is handed to do so."""

    budget: Budget
    """What to keep to."""
    queries: Callable[[], NDArray[np.float32] | None] = lambda: None
    """Gives text queries to tune with, None where there are none. Shape: (n, dim), float32, unit rows."""
    say: Callable[[str], None] = lambda line: None
    """Is told what was planned and what was measured."""
    device: str = "auto"
    """Where structures are trained, if FAISS has GPUs: ``auto``, ``cuda``, ``cuda:1``; or ``cpu``."""
    untried_rows: int = 0
    """Up to so many vectors the exact search is taken without trying or measuring anything."""

    def __call__(self, path: Path, vectors: Vectors) -> Mapping[str, Any]:
        """Write the structure to ``path`` and return its plan as JSON.

        Raises:
            BudgetError: nothing fits the memory; the message has the numbers.
            FaissNotInstalledError: FAISS is not installed.
            OSError: the disk is full, or worse.
        """
        if len(vectors) <= self.untried_rows:
            write_faiss(path, vectors.blocks(), rows=len(vectors), dim=vectors.dim)
            return {"kind": KIND}
        queries = self.queries()
        plan = plan_index(vectors, budget=self.budget, queries=queries, device=self.device)
        if not plan.file:
            write_faiss(path, vectors.blocks(), rows=len(vectors), dim=vectors.dim)
        made = make_ann(path, vectors, plan=plan, queries=queries, device=self.device)
        for line in made.lines():
            self.say(line)
        return made.to_json()


def plan_index(
    vectors: Vectors, *, budget: Budget, queries: NDArray[np.float32] | None = None, device: str = "auto"
) -> Plan:
    """Choose how ``vectors`` are to be searched. Makes nothing but trials on a sample.

    What is asked of a query is promised where nothing else runs: times are those of this machine as it is now.

    Args:
        vectors: the stored rows.
        budget: what to keep to; without a size of memory, three quarters of what is free.
        queries: text queries to try with, None if there are none. Shape: (n, dim), float32, unit rows.
        device: where trials are trained, as of ``BudgetPlanner``.

    Raises:
        BudgetError: nothing fits the memory; the message has the numbers.
        FaissNotInstalledError: FAISS is not installed.
    """
    ram = budget.ram if budget.ram is not None else int(free_memory() * _FREE_SHARE)
    budget = replace(budget, ram=ram)
    trial = _Trial(vectors, budget=budget, queries=queries, device=device)
    exact = trial.exact()
    if why := _why_exact(exact, budget=budget, rows=len(vectors)):
        return trial.plan("flat-fp16-ip", exact, why=why)
    considered = [Alternative(kind="flat-fp16-ip", figures=exact, why_not=_shortfall(exact, budget))]
    if budget.recall >= 1:
        raise BudgetError(_refusal(considered, ram=ram, rows=len(vectors), dim=vectors.dim))
    best: tuple[tuple[bool, float], IndexKind, Cost] | None = None
    for kind in APPROXIMATE:
        figures = estimate_cost(kind, rows=len(vectors), dim=vectors.dim)
        if problem := unsupported_reason(kind, rows=len(vectors), dim=vectors.dim) or _too_large(
            figures, ram
        ):
            considered.append(Alternative(kind=kind, figures=figures, why_not=problem))
            continue
        if best is not None and best[0][0]:
            why_not = f"not tried: {best[1]} keeps to the budget and comes first"
            considered.append(Alternative(kind=kind, figures=figures, why_not=why_not))
            continue
        figures = trial.run(kind, figures)
        order = (not _shortfall(figures, budget), -_distance(figures, budget))
        if best is None or order > best[0]:
            if best is not None:
                considered.append(
                    Alternative(kind=best[1], figures=best[2], why_not=_shortfall(best[2], budget))
                )
            best = (order, kind, figures)
        else:
            considered.append(Alternative(kind=kind, figures=figures, why_not=_shortfall(figures, budget)))
    if best is None:
        if exact.bytes <= ram:
            return trial.plan(
                "flat-fp16-ip", exact, why="nothing faster can be made", considered=considered[1:]
            )
        raise BudgetError(_refusal(considered, ram=ram, rows=len(vectors), dim=vectors.dim))
    (kept, _), kind, figures = best
    if not kept and exact.bytes <= ram and _distance(exact, budget) <= _distance(figures, budget):
        other = Alternative(kind=kind, figures=figures, why_not=_shortfall(figures, budget))
        why = f"the nearest: {_shortfall(exact, budget)}"
        return trial.plan("flat-fp16-ip", exact, why=why, considered=[*considered[1:], other])
    why = "the first that keeps to the budget" if kept else f"the nearest: {_shortfall(figures, budget)}"
    return trial.plan(kind, figures, why=why, considered=considered)


def require_memory(budget: Budget, *, rows: int, dim: int) -> None:
    """Refuse, before any vector is made, what no kind could do within the memory that was given.

    Args:
        budget: what to keep to; nothing is refused where it names no memory.
        rows: how many vectors there will be.
        dim: their length.

    Raises:
        BudgetError: nothing fits; the message has the numbers.
    """
    if budget.ram is None or not rows:
        return
    kinds: list[Alternative] = []
    for kind in ("flat-fp16-ip", *(() if budget.recall >= 1 else APPROXIMATE)):
        figures = estimate_cost(kind, rows=rows, dim=dim)
        if problem := unsupported_reason(kind, rows=rows, dim=dim) or _too_large(figures, budget.ram):
            kinds.append(Alternative(kind=kind, figures=figures, why_not=problem))
        else:
            return
    raise BudgetError(_refusal(kinds, ram=budget.ram, rows=rows, dim=dim))


def make_ann(
    path: Path,
    vectors: Vectors,
    *,
    plan: Plan,
    queries: NDArray[np.float32] | None = None,
    device: str = "auto",
) -> Plan:
    """Write the structure of a plan, tune it on held-out queries and measure it on others.

    Args:
        path: the file to write; nothing is written for a plan without one (``plan.file``).
        vectors: the rows that it covers, all of them.
        plan: what ``plan_index`` chose for them.
        queries: as for ``plan_index``.
        device: where it is trained, as of ``BudgetPlanner``.

    Returns:
        The plan with the parameters that were found and what was measured.

    Raises:
        BudgetError: it would not fit into the memory that is free now.
        OSError: the disk is full, or worse.
    """
    asked = sample_queries(vectors, queries)
    found, size = plan, plan.predicted.bytes
    if not plan.file:
        measured = measure(KnnSearcher(vectors), asked.half(1))
    else:
        write_ann(path, vectors, plan=plan, device=device)
        size = path.stat().st_size
        index = FaissAnnIndex.read(path, plan=plan)
        parameters = tune(index, vectors, asked.half(0), recall=plan.budget.recall)
        found = replace(plan, parameters={**plan.parameters, **parameters})
        index = FaissAnnIndex.read(path, plan=found)
        measured = measure(KnnSearcher(vectors, candidates=index), asked.half(1))
    figures = Cost(
        bytes=size,
        build_bytes=plan.predicted.build_bytes,
        recall=measured.recall,
        p50_ms=measured.p50_ms,
        p95_ms=measured.p95_ms,
    )
    return replace(found, measured=figures, asked=asked.kind)


def renewed(plan: Plan, *, rows: int) -> Plan:
    """A plan for another number of rows of the same kind, as when an index has grown."""
    if plan.rows == rows:
        return plan
    return replace(
        plan,
        factory=factory_of(plan.kind, rows=rows, dim=plan.dim),
        parameters=parameters_of(plan.kind, rows=rows),
        rows=rows,
        predicted=estimate_cost(plan.kind, rows=rows, dim=plan.dim),
        measured=None,
    )


def write_ann(path: Path, vectors: Vectors, *, plan: Plan, device: str = "auto") -> None:
    """Make the structure of a plan from the stored rows and write it.

    On a CPU the same rows and plan give the same structure; where FAISS has a GPU, centres of lists are found there.

    Raises:
        BudgetError: it would not fit into the memory that is free now.
        FaissNotInstalledError: FAISS is not installed.
        OSError: the disk is full, or worse.
    """
    need, free = plan.predicted.build_bytes, free_memory()
    if need > free:
        raise BudgetError(
            f"making {plan.kind} of {plan.rows:,} vectors needs {format_bytes(need)} of memory, "
            f"{format_bytes(free)} are free: end other programs, or plan for less with --ram"
        )
    parameters = plan.parameters
    sample = sample_of(vectors, parameters["train_rows"], rows=plan.rows, seed=parameters["seed"])
    blocks = ((first, rows[: plan.rows - first]) for first, rows in vectors.blocks() if first < plan.rows)
    FaissAnnIndex.build(blocks, sample=sample, plan=plan, device=device).write(path)


class _Trial:
    """Tries kinds on a random sample of the rows."""

    def __init__(
        self, vectors: Vectors, *, budget: Budget, queries: NDArray[np.float32] | None, device: str
    ) -> None:
        self._rows, self._dim, self._budget, self._device = len(vectors), vectors.dim, budget, device
        if len(vectors) > TRIAL_ROWS:
            ids = np.random.default_rng(0).choice(len(vectors), size=TRIAL_ROWS, replace=False)
            self._sample = Vectors([vectors.take(np.sort(ids))], dim=vectors.dim)
        else:
            self._sample = vectors
        self._asked = sample_queries(self._sample, queries)

    def exact(self) -> Cost:
        """What the exact scan costs, reckoned up from the sample."""
        p50, _ = exact_times(self._sample, self._asked.queries, rows=self._rows)
        figures = estimate_cost("flat-fp16-ip", rows=self._rows, dim=self._dim)
        return replace(figures, recall=1.0, p50_ms=round(p50, 4), p95_ms=round(p50 * _STEADY, 4))

    def run(self, kind: IndexKind, figures: Cost) -> Cost:
        """Make a kind of the sample, tune it, and reckon its times up to all rows."""
        rows = len(self._sample)
        plan = self.plan(kind, figures, why="a trial", rows=rows)
        train = sample_of(self._sample, plan.parameters["train_rows"], rows=rows, seed=0)
        index = FaissAnnIndex.build(self._sample.blocks(), sample=train, plan=plan, device=self._device)
        found = tune(index, self._sample, self._asked.half(0), recall=self._budget.recall)
        tuned = replace(plan, parameters={**plan.parameters, **found})
        index = FaissAnnIndex(index.faiss_index, plan=tuned)
        measured = measure(KnnSearcher(self._sample, candidates=index), self._asked.half(1))
        grown = _growth(kind, self._rows, rows)
        return replace(
            figures,
            recall=measured.recall,
            p50_ms=round(measured.p50_ms * grown, 4),
            p95_ms=round(measured.p95_ms * grown, 4),
        )

    def plan(
        self,
        kind: IndexKind,
        figures: Cost,
        *,
        why: str,
        considered: list[Alternative] | None = None,
        rows: int | None = None,
    ) -> Plan:
        """A plan of a kind for all rows, or for so many."""
        rows = rows if rows is not None else self._rows
        return Plan(
            kind=kind,
            factory=factory_of(kind, rows=rows, dim=self._dim),
            parameters=parameters_of(kind, rows=rows),
            rows=rows,
            dim=self._dim,
            budget=self._budget,
            predicted=figures,
            why=why,
            considered=tuple(considered or ()),
        )


def _growth(kind: IndexKind, rows: int, sample: int) -> float:
    """How much longer a query takes over all rows: lists grow by the root, walks by the logarithm."""
    if rows <= sample:
        return 1.0
    if kind.startswith("hnsw"):
        return 1.5 * math.log(rows) / math.log(sample)
    return math.sqrt(rows / sample)


def _why_exact(exact: Cost, *, budget: Budget, rows: int) -> str | None:
    if exact.bytes > (budget.ram or 0):
        return None
    if not _shortfall(exact, budget):
        return "an exact scan is fast enough"
    return "nothing but an exact scan has a recall of 1" if budget.recall >= 1 else None


def _shortfall(figures: Cost, budget: Budget) -> str:
    """In what a way of searching misses the budget; empty if in nothing."""
    missed = []
    if figures.bytes > (budget.ram or 0):
        missed.append(f"wants {format_bytes(figures.bytes)}, allowed {format_bytes(budget.ram or 0)}")
    if figures.recall is not None and figures.recall < budget.recall - _TRIAL_SLACK:
        missed.append(f"recall@10 of {figures.recall:.3f} on a sample, asked for {budget.recall:g}")
    if figures.p95_ms is not None and figures.p95_ms > budget.p95_ms:
        missed.append(f"p95 of {figures.p95_ms:.2f} ms, asked for {budget.p95_ms:g}")
    return "; ".join(missed)


def _distance(figures: Cost, budget: Budget) -> float:
    """How far a way of searching is from the budget: missing recall first, then time."""
    missing = max(0.0, budget.recall - (figures.recall or 0.0))
    return missing * 1e6 + (figures.p95_ms or 0.0)


def _too_large(figures: Cost, ram: int) -> str | None:
    if figures.bytes > ram:
        return f"wants {format_bytes(figures.bytes)} while searching, allowed {format_bytes(ram)}"
    if figures.build_bytes > ram:
        return f"wants {format_bytes(figures.build_bytes)} while it is made, allowed {format_bytes(ram)}"
    return None


def _refusal(considered: list[Alternative], *, ram: int, rows: int, dim: int) -> str:
    def wanted(each: Alternative) -> int:
        return max(each.figures.bytes, each.figures.build_bytes)

    least = min(considered, key=wanted)
    making = ", making it included" if least.figures.build_bytes > least.figures.bytes else ""
    return (
        f"{rows:,} vectors of {dim} numbers cannot be searched within {format_bytes(ram)} of memory: "
        f"{least.kind}, which wants least{making}, needs {format_bytes(wanted(least))}. "
        "Allow more with --ram, or index fewer images"
    )
