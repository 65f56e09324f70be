"""What of the ranked images an answer shows, and a page of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from llm2clip.indexer import Hit

By = Literal["auto", "image", "caption", "all"]
"""What a query is compared with: images, words that came with them, or both; ``auto``: see docs/searching.md."""
Sort = Literal["score", "date"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Which images a page shows, and in which order.

    Raises:
        ValueError: A value is outside its range. Filter and cursor are checked when they are used.
    """

    k: int = 10
    """Hits of a page, at least 1."""
    where: str | None = None
    """Filter on the images (docs/filters.md)."""
    min_confidence: float | None = None
    """Leave out images of lower confidence, 0 to 1; for queries of texts only."""
    by: By = "auto"
    """What the query is compared with."""
    sort: Sort = "score"
    """``date``: newest first. With ``min_confidence`` all images above it are sorted, else each page for itself."""
    fold: bool = True
    """Show copies of one image once, with the others in ``Hit.duplicates``."""
    diverse: bool = False
    """Prefer images that differ from those before them (maximal marginal relevance)."""
    page: int = 1
    """Number of the page, where there is no cursor."""
    cursor: str | None = None
    """From the page before, which goes on after it even if the index has changed."""
    explain: bool = False
    """Whether ``Page.explanation`` is wanted."""

    def __post_init__(self) -> None:
        try:
            k = operator.index(self.k)  # of NumPy's integers too
        except TypeError as error:
            raise ValueError(f"k must be a whole number, got {self.k!r}") from error
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if self.page < 1 or (self.page > 1 and self.cursor):
            raise ValueError(f"page is a number from 1, without a cursor; got {self.page}")
        least = self.min_confidence
        if least is not None and not (0 <= least <= 1 and math.isfinite(least)):
            raise ValueError(f"the least confidence must be from 0 to 1, got {least}")
        for name, known in (("by", get_args(By)), ("sort", get_args(Sort))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.diverse and self.sort == "date":
            raise ValueError("diverse and sort by date exclude each other: choose one")


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of an answer."""

    hits: Sequence[Hit]
    """In the order asked for, ranks counted over all pages."""
    total: int
    """Images on all pages: with ``min_confidence`` those above it, else those that pass the filter, copies included."""
    cursor: str | None
    """Gets the next page; ``None``: this is the last."""
    generation: str
    """Generations of the indexes that were searched. Pages with the same one are cut from the same ranking."""
    notes: tuple[str, ...] = ()
    """Sentences for whoever asked, such as that nothing passed ``min_confidence``."""
    explanation: tuple[str, ...] = ()
    """What was read and how it was answered, a sentence per step; empty unless asked for."""
