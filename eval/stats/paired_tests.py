"""Paired tests: which of two encoders is better, and which of many cannot be told from the best.

Effect sizes stand beside every p-value (Ihemelandu & Ekstrand, SIGIR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.stats.bootstrap import Clustered, Resampling, drawn_means

_EXACT_CLUSTERS = 13
_BATCH_NUMBERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The difference of two encoders over the same queries, first minus second."""

    difference: float
    low: float
    """Lower end of its interval, images drawn with all their queries."""
    high: float
    p_value: float
    """Chance of a difference at least as large if for every image the two results were exchangeable; two-sided."""
    effect: float
    """Difference over the standard deviation between images; 0.2 is usually called small."""
    wins: int
    losses: int
    queries: int
    clusters: int


def paired_test(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    clusters: NDArray[np.int64] | None = None,
    resampling: Resampling | None = None,
) -> PairedTest:
    """Compare two encoders query by query. Shapes: (queries,).

    A permutation test exchanges the two results of a whole image at once; over hits with one query per image it is
    McNemar's exact test. Beyond 13 images that differ, ``resampling.times`` exchanges are drawn.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"got results of shape {first.shape} and {second.shape}, expected one value per query for both. "
            "Compare encoders on the same set."
        )
    how = resampling or Resampling()
    gap = first.astype(np.float64) - second.astype(np.float64)
    parts = Clustered.of(gap, clusters)
    low, high = how.ends(drawn_means([parts], how)[0][0])
    spread = parts.sums[0] / parts.sizes
    deviation = float(spread.std(ddof=1)) if len(spread) > 1 else 0.0
    return PairedTest(
        difference=float(parts.means()[0]),
        low=low,
        high=high,
        p_value=exchange_p_value(parts.sums[0], how),
        effect=float(spread.mean()) / deviation if deviation > 0 else 0.0,
        wins=int(np.count_nonzero(gap > 0)),
        losses=int(np.count_nonzero(gap < 0)),
        queries=len(gap),
        clusters=len(parts.sizes),
    )


def exchange_p_value(gaps: NDArray[np.float64], how: Resampling) -> float:
    """Two-sided p-value of a sum of gaps whose signs are a matter of chance. Shape of ``gaps``: (clusters,)."""
    gaps = gaps[gaps != 0]
    if not len(gaps):
        return 1.0
    reached = abs(gaps.sum()) - 1e-9 * np.abs(gaps).sum()  # sums in another order differ in the last digits
    if len(gaps) <= _EXACT_CLUSTERS:
        bits = np.arange(1 << len(gaps))[:, None] >> np.arange(len(gaps)) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ gaps) >= reached))
    random = np.random.default_rng(how.seed)
    step = max(1, _BATCH_NUMBERS // len(gaps))
    extreme = 0
    for start in range(0, how.times, step):
        flips = random.integers(0, 2, size=(min(step, how.times - start), len(gaps)), dtype=np.int8)
        extreme += int(np.count_nonzero(np.abs(gaps.sum() - 2 * (flips @ gaps)) >= reached))
    return (extreme + 1) / (how.times + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of a whole table adjusted by Holm's procedure: below 0.05, all claims hold together at 95 %."""
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"got p-values {list(p_values)}, expected numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    factors = np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(value) for value in adjusted]


@dataclass(frozen=True, kw_only=True)
class AgainstBest:
    """One encoder of a table beside the best one."""

    name: str
    value: float
    behind: PairedTest | None = None
    """Best minus this one; ``None`` for the best itself."""
    p_value: float = 1.0
    separable: bool = False


def against_best(
    results: Mapping[str, NDArray[np.floating]],
    *,
    clusters: NDArray[np.int64] | None = None,
    resampling: Resampling | None = None,
) -> list[AgainstBest]:
    """Compare every encoder with the best one, best first; hits by encoder have shape (queries,)."""
    if not results:
        raise ValueError("got no encoder, expected the results of at least one")
    how = resampling or Resampling()
    best, *others = sorted(results, key=lambda name: -float(np.mean(results[name])))
    tests = [paired_test(results[best], results[name], clusters=clusters, resampling=how) for name in others]
    adjusted = holm([test.p_value for test in tests])
    return [
        AgainstBest(name=best, value=float(np.mean(results[best]))),
        *(
            AgainstBest(
                name=name,
                value=float(np.mean(results[name])),
                behind=test,
                p_value=p_value,
                separable=p_value < 2 * how.tail,
            )
            for name, test, p_value in zip(others, tests, adjusted, strict=True)
        ),
    ]
