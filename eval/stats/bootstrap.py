"""Bootstrap confidence intervals of means over queries.

Queries about one image succeed and fail together, so images are drawn, each with all its queries. An interval covers
the choice of queries, not of the gallery or of the encoder's training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.rank_positions import Positives

_BATCH_NUMBERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How often to draw, and from which seed."""

    times: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.times < 1 or not 0 < self.confidence < 1:
            raise ValueError(
                f"got {self.times} draws at confidence {self.confidence}, expected at least one and a share below 1"
            )

    @property
    def tail(self) -> float:
        """Share left out on each side."""
        return (1 - self.confidence) / 2

    def ends(self, drawn: NDArray[np.float64]) -> tuple[float, float]:
        """Lower and upper end of the interval of drawn values."""
        low, high = np.quantile(drawn, [self.tail, 1 - self.tail])
        return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over queries with its interval."""

    value: float
    low: float
    high: float
    confidence: float
    queries: int
    clusters: int
    """Images they belong to."""
    design_effect: float
    """Variance of the mean over what it would be if queries were independent; 1 with one query per image."""


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """Values of queries summed up by image: all that drawing images needs."""

    sums: NDArray[np.float64]
    sizes: NDArray[np.float64]
    """Shape: (clusters,): queries of each."""
    names: NDArray[np.int64]
    """Shape: (clusters,): which image, ascending."""
    squares: NDArray[np.float64]
    """Shape: (metrics,): sum of the squared values of single queries."""

    @classmethod
    def of(cls, values: NDArray[np.floating], clusters: NDArray[np.int64] | None) -> Clustered:
        """Sum up values of shape (queries,) or (metrics, queries) by the image of each query.

        Without ``clusters`` each query is its own. ``ValueError`` if shapes disagree or a value is not finite.
        """
        table = np.atleast_2d(np.asarray(values, dtype=np.float64))
        owner = np.arange(table.shape[1]) if clusters is None else np.asarray(clusters)
        if table.ndim != 2 or not table.size or owner.shape != table.shape[1:]:
            raise ValueError(
                f"got values of shape {table.shape} and clusters of shape {owner.shape}, expected one cluster for "
                "each value and at least one value"
            )
        if not np.isfinite(table).all():
            raise ValueError("got a value that is not finite, expected hits or shares of queries")
        names, index = np.unique(owner, return_inverse=True)
        return cls(
            sums=np.stack([np.bincount(index, weights=row, minlength=len(names)) for row in table]),
            sizes=np.bincount(index, minlength=len(names)).astype(np.float64),
            names=names.astype(np.int64),
            squares=np.einsum("mq,mq->m", table, table),
        )

    def means(self) -> NDArray[np.float64]:
        """Mean over queries. Shape: (metrics,)."""
        return np.asarray(self.sums.sum(axis=1) / self.sizes.sum())


def bootstrap_interval(
    values: NDArray[np.floating],
    *,
    clusters: NDArray[np.int64] | None = None,
    resampling: Resampling | None = None,
) -> Interval:
    """Percentile interval of a mean over queries, drawing images with all their queries. Shapes: (queries,).

    Where every image has the same value 0 or 1, the end inside [0, 1] is the exact binomial one.
    """
    return bootstrap_intervals(np.asarray(values)[None], clusters=clusters, resampling=resampling)[0]


def bootstrap_intervals(
    values: NDArray[np.floating],
    *,
    clusters: NDArray[np.int64] | None = None,
    resampling: Resampling | None = None,
) -> list[Interval]:
    """Intervals of several metrics from the same draws; ``values`` has shape (metrics, queries)."""
    how = resampling or Resampling()
    parts = Clustered.of(values, clusters)
    drawn = drawn_means([parts], how)[0]
    return [_interval(parts, metric, row, how) for metric, row in enumerate(drawn)]


def drawn_means(
    parts: Sequence[Clustered], how: Resampling, *, shared: bool = False
) -> list[NDArray[np.float64]]:
    """Means over queries in every draw of images. Shape of each part: (metrics, times)."""
    random = np.random.default_rng(how.seed)
    if not shared:
        return [_drawn(random, [part], part.names, how)[0] for part in parts]
    return _drawn(random, parts, np.unique(np.concatenate([part.names for part in parts])), how)


def _drawn(
    random: np.random.Generator, parts: Sequence[Clustered], names: NDArray[np.int64], how: Resampling
) -> list[NDArray[np.float64]]:
    found = [np.empty((len(part.sums), how.times)) for part in parts]
    columns = [np.searchsorted(names, part.names) for part in parts]
    step = max(1, _BATCH_NUMBERS // len(names))
    for start in range(0, how.times, step):
        count = min(step, how.times - start)
        drawn = random.integers(0, len(names), size=(count, len(names)))
        drawn += np.arange(count)[:, None] * len(names)
        weight = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        for part, own, means in zip(parts, columns, found, strict=True):
            own_weight = weight if len(own) == len(names) else weight[:, own]
            sizes = own_weight @ part.sizes
            sums = part.sums @ own_weight.T
            means[:, start : start + count] = np.where(
                sizes > 0, sums / np.maximum(sizes, 1), part.means()[:, None]
            )
    return found


def _interval(parts: Clustered, metric: int, drawn: NDArray[np.float64], how: Resampling) -> Interval:
    mean, clusters, queries = float(parts.means()[metric]), len(parts.sizes), float(parts.sizes.sum())
    low, high = how.ends(drawn)
    if parts.squares[metric] in (0.0, queries) and mean in (0.0, 1.0):
        edge = float(2 * how.tail) ** (1 / clusters)
        low, high = (edge, 1.0) if mean else (0.0, 1 - edge)
    independent = parts.squares[metric] - queries * mean**2
    together = float(((parts.sums[metric] - mean * parts.sizes) ** 2).sum())
    return Interval(
        value=mean,
        low=low,
        high=high,
        confidence=how.confidence,
        queries=int(queries),
        clusters=clusters,
        design_effect=float(together / independent) if independent > 1e-9 * queries else 1.0,
    )


def macro_interval(
    parts: Sequence[Clustered], *, shared: bool, resampling: Resampling | None = None
) -> tuple[float, float, float]:
    """(mean, low, high) of the plain mean over sets or languages, each counting the same."""
    if not parts or any(len(part.sums) != 1 for part in parts):
        raise ValueError(
            f"got {len(parts)} parts with {[len(part.sums) for part in parts]} metrics, expected at least one part "
            "and one metric in each"
        )
    how = resampling or Resampling()
    drawn = np.mean([means[0] for means in drawn_means(parts, how, shared=shared)], axis=0)
    return float(np.mean([part.means()[0] for part in parts])), *how.ends(drawn)


def query_clusters(positives: Positives) -> NDArray[np.int64]:
    """The group of answers that each query is about: queries that share an answer share the group. Shape: (queries,).

    Images connected through queries with several right images are one group, named by its first answer; a query without
    a right answer has a negative number of its own.
    """
    root = np.arange(positives.columns, dtype=np.int64)

    def find(item: int) -> int:
        while root[item] != item:
            root[item] = root[root[item]]
            item = int(root[item])
        return item

    first = np.searchsorted(positives.row, np.arange(positives.rows + 1))
    counts = np.diff(first)
    for query in np.flatnonzero(counts > 1):
        answers = positives.column[first[query] : first[query + 1]].tolist()
        heads = sorted(find(answer) for answer in answers)
        for head in heads[1:]:
            root[head] = heads[0]
    clusters = -1 - np.arange(positives.rows, dtype=np.int64)
    asked = counts > 0
    clusters[asked] = [find(answer) for answer in positives.column[first[:-1][asked]].tolist()]
    return clusters
