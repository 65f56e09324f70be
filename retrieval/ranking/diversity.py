"""Maximal marginal relevance: hits that fit the query and differ from those before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RELEVANCE = 0.5
"""Weight of relevance; the rest is that of being different."""


def diverse_order(scores: NDArray[np.float64], vectors: NDArray[np.float32]) -> list[int]:
    """The order in which to show hits.

    The next is always the one of the largest ``RELEVANCE * relevance - (1 - RELEVANCE) * cosine``, where relevance is
    the score, scaled to 1 for the best and 0 for the last, and cosine the largest to those shown before.

    Args:
        scores: Shape: (n,), best first.
        vectors: Unit rows of the same hits. Shape: (n, dim), float32.

    Returns:
        Positions, n of them, 0 first.
    """
    import numpy as np

    if not len(scores):
        return []
    span = float(scores[0] - scores[-1]) or 1.0
    relevance = (scores - scores[-1]) / span
    nearest = np.zeros(len(scores))
    waiting = np.ones(len(scores), dtype=np.bool_)
    order: list[int] = []
    for _ in range(len(scores)):
        gain = np.where(waiting, RELEVANCE * relevance - (1 - RELEVANCE) * nearest, -np.inf)
        best = int(np.argmax(gain))
        order.append(best)
        waiting[best] = False
        np.maximum(nearest, vectors @ vectors[best], out=nearest)
    return order
