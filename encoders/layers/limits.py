"""Whether a number that a configuration gives can be a size at all, before anything of that size is made."""

from __future__ import annotations

MOST = 1 << 24
"""Larger than any axis of a model that is read here."""
MOST_LAYERS = 1024
"""More blocks than any of them has: as many as are said are built before the weights are compared with them."""


def check_size(name: str, value: object, *, most: int = MOST) -> None:
    """Raise ``ValueError`` where a number is no size: not whole, not positive, or beyond ``most``."""
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most:,}, got {str(value)[:40]}")
