"""``explain_search``: what a search of an index would do, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm2clip.indexer.search.index import Index


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a search would do."""

    path: str
    """The index."""
    items: int
    """Images that can be found."""
    allowed: int
    """Of them, those that the filter lets through; all without a filter."""
    tombstones: int
    """Vectors of no image, which are passed over."""
    covered: int
    """Vectors in the search structure."""
    tail: int
    """Vectors that came after it was written, which are all compared."""
    structure: str
    """Kind of the search structure."""
    steps: tuple[str, ...]
    """What is done, one sentence each."""


def explain_search(index: Index, *, where: str | None = None) -> Explanation:
    """Say what a search of an index would do.

    Args:
        index: the index.
        where: a filter in the language of docs/filters.md; None: without one.

    Raises:
        WhereError: the filter means nothing.
    """
    manifest, allowed = index.manifest, index.allowed(where)
    covered = manifest.ann.rows if manifest.ann else 0
    steps: list[str] = []
    if manifest.tombstones:
        steps.append(
            f"{manifest.tombstones:,} of {manifest.rows:,} vectors are of images that were removed or changed and "
            "are passed over; llm2clip-index compact drops them"
        )
    count = len(index) if allowed is None else int(np.count_nonzero(allowed))
    if where is not None:
        share = count / len(index) if len(index) else 0.0
        steps.append(f"the filter lets {count:,} of {len(index):,} images through ({share:.2%})")
    steps += index.explain(where=where)
    return Explanation(
        path=str(index.path),
        items=len(index),
        allowed=count,
        tombstones=manifest.tombstones,
        covered=covered,
        tail=manifest.rows - covered,
        structure=str(manifest.ann.plan.get("kind", "?")) if manifest.ann else "none",
        steps=tuple(steps),
    )
