"""Whether an approximate structure can be believed under a filter: found out by also asking for the exact answer.

What a filter lets through may lie anywhere: far from most queries, where a structure hardly looks, or in a single
heap. No count of rows tells. So the first queries under a filter are answered by a scan, and the structure is asked
beside it; once it has given the same answers often enough it is believed, and only some queries are still asked both
ways. If it misses too much, the rows that pass are scanned from then on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.rerank import Ranked

QUERIES = 32
"""Queries that are asked both ways at first."""
LATER = 16
"""After that, one of so many."""
RECALL = 0.98
"""Share of the exact answers that the structure must have given to them."""
MOSTLY = 0.8
"""Filters that let through a larger share of the rows than this change too little to be asked about."""
_KEPT = 32


@dataclass
class Evidence:
    """What is known about a structure under one filter."""

    queries: int = 0
    """Queries that were asked both ways."""
    wanted: int = 0
    """Hits of the exact answers to them."""
    found: int = 0
    """Of those, the ones that the structure gave as well."""
    later: int = 0
    """Queries since the last one after the first that was asked both ways."""

    @property
    def hopeless(self) -> bool:
        """Whether the structure is not to be asked any more, whatever it would give to the first queries left."""
        missed = self.wanted - self.found
        return missed * self.queries > (1 - RECALL) * self.wanted * max(QUERIES, self.queries)

    @property
    def believed(self) -> bool:
        """Whether the structure may be asked alone."""
        return self.queries >= QUERIES and not self.hopeless

    def due(self, count: int) -> int:
        """How many of the next ``count`` queries are to be asked both ways."""
        if self.hopeless:
            return 0
        if self.queries < QUERIES:
            return min(count, QUERIES - self.queries)
        due, self.later = divmod(self.later + count, LATER)
        return due

    def add(self, exact: Sequence[Ranked], given: Sequence[Ranked]) -> None:
        """Compare answers to the same queries; an equally good other hit is as good."""
        for best, hits in zip(exact, given, strict=True):
            last = best[-1][1] if best else 0.0
            self.queries += 1
            self.wanted += len(best)
            self.found += sum(score >= last for _, score in hits[: len(best)])


class Trust:
    """Evidence about each of the last filters; a filter is known by its mask, which has to be the same object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: list[tuple[weakref.ref[NDArray[np.bool_]], Evidence]] = []

    def about(self, allowed: NDArray[np.bool_]) -> Evidence:
        """What is known under a filter."""
        with self._lock:
            self._known = [(mask, evidence) for mask, evidence in self._known if mask() is not None]
            for mask, evidence in self._known:
                if mask() is allowed:
                    return evidence
            evidence = Evidence()
            self._known = [*self._known[-_KEPT:], (weakref.ref(allowed), evidence)]
            return evidence
