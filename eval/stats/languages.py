"""One encoder over the languages of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.stats.bootstrap import Clustered, Interval, Resampling, bootstrap_interval, macro_interval


@dataclass(frozen=True, kw_only=True)
class LanguageSummary:
    """One number over all languages of a data set, each counting the same."""

    mean: float
    low: float
    """Lower end of its interval: images are drawn once for all languages."""
    high: float
    spread: float
    """Standard deviation between languages."""
    worst: float
    """Mean over the five lowest languages, or all if there are fewer."""
    worst_languages: tuple[str, ...]
    english_gap: float | None
    """English minus the mean of the others; ``None`` without English or without others."""
    languages: Mapping[str, Interval]


def by_language(
    hits: Mapping[str, NDArray[np.floating]],
    *,
    clusters: Mapping[str, NDArray[np.int64]],
    resampling: Resampling | None = None,
) -> LanguageSummary:
    """Sum up one encoder's hits over languages. Shapes: (queries,); equal clusters are equal images."""
    if not hits or hits.keys() != clusters.keys():
        raise ValueError(
            f"got hits in {sorted(hits)} and clusters in {sorted(clusters)}, expected the same languages, at least one"
        )
    parts = [Clustered.of(hits[code], clusters[code]) for code in hits]
    mean, low, high = macro_interval(parts, shared=True, resampling=resampling)
    values = {code: float(np.mean(one)) for code, one in hits.items()}
    lowest = sorted(values, key=lambda code: values[code])[:5]
    others = [value for code, value in values.items() if code != "en"]
    return LanguageSummary(
        mean=mean,
        low=low,
        high=high,
        spread=float(np.std(list(values.values()))),
        worst=float(np.mean([values[code] for code in lowest])),
        worst_languages=tuple(lowest),
        english_gap=values["en"] - float(np.mean(others)) if "en" in values and others else None,
        languages={
            code: bootstrap_interval(one, clusters=clusters[code], resampling=resampling)
            for code, one in hits.items()
        },
    )
