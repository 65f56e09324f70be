"""Explains how a search of an index is answered."""

from __future__ import annotations

from dataclasses import dataclass

from llm2clip.indexer.search.index import Index


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How a search is answered."""

    path: str
    items: int
    """Images that can be found."""
    allowed: int
    """Of them, those that pass the filter; all without one."""
    tombstones: int
    """Vectors of removed or changed images, which are skipped."""
    covered: int
    """Vectors in the ANN index."""
    tail: int
    """Vectors added since it was built, which are scanned."""
    ann_index: str
    """Type of the ANN index; ``flat-fp16-ip`` is exact."""
    steps: tuple[str, ...]
    """One sentence per step."""


def explain_search(index: Index, *, where: str | None = None) -> Explanation:
    """Explain how a search of an index is answered."""
    manifest = index.manifest
    covered = manifest.ann.rows if manifest.ann else 0
    return Explanation(
        path=str(index.path),
        items=len(index),
        allowed=index.count(where),
        tombstones=manifest.tombstones,
        covered=covered,
        tail=manifest.rows - covered,
        ann_index=str(manifest.ann.plan.get("kind", "?")) if manifest.ann else "none",
        steps=tuple(index.explain(where=where)),
    )
