"""Where a page ends and the next begins."""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass

MOST_PAGED = 100_000
"""Hits up to which pages can be turned."""
_SIGN = "1"
"""Version of what a cursor holds."""


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The end of a page."""

    seen: int
    """Hits on this page and those before it."""
    generation: str
    """Generations of the indexes that the page was cut from."""
    score: float
    """Score of the last hit, ..."""
    id: int
    """... and its id."""

    def __str__(self) -> str:
        """As text that fits into a URL."""
        text = f"{_SIGN}:{self.seen}:{self.generation}:{self.id}:{self.score!r}"
        return base64.urlsafe_b64encode(text.encode("ascii")).decode("ascii").rstrip("=")

    @staticmethod
    def of(text: str) -> Cursor:
        """What ``str`` of a cursor gave.

        Raises:
            ValueError: It is something else, or lies beyond ``MOST_PAGED``.
        """
        try:
            told = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)).decode("ascii")
            sign, seen, generation, id, score = told.split(":")
            found = Cursor(seen=int(seen), generation=generation, id=int(id), score=float(score))
            if sign != _SIGN or not math.isfinite(found.score):
                raise ValueError(sign)
        except (ValueError, binascii.Error) as error:
            raise ValueError("the cursor is not one that a search gave; begin again without it") from error
        if not 0 < found.seen <= MOST_PAGED:
            raise ValueError(f"pages end after {MOST_PAGED:,} hits; narrow the query with a filter")
        return found
