"""The lattice check: a printed recall must be a whole number of hits over the declared number of queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """A printed percentage beside the values that are possible."""

    printed: str
    """As it was printed."""
    queries: int
    """Declared number of queries."""
    hits: tuple[int, ...]
    """Numbers of hits that are printed so; empty if there is none."""
    cut: tuple[int, ...]
    """Numbers of hits that are printed so where digits are cut off instead of rounded, as some sources do."""
    nearest: str
    """The possible value next to it, with as many decimals."""

    @property
    def possible(self) -> bool:
        """Whether the value can have come about with that many queries, rounded or cut."""
        return bool(self.hits or self.cut)


def on_lattice(printed: str | Decimal, *, queries: int, values: int = 1) -> Lattice:
    """Check a percentage as it was printed.

    With few decimals and many queries every value is possible and nothing is learnt: a value with d decimals tells only
    if there are fewer than about ``10^(2 + d)`` queries. Rounding half up and half to even both pass.

    Args:
        printed: The value in percent, with its decimals: ``"64.10"`` says more than ``"64.1"``.
        queries: In the denominator.
        values: How many such values were averaged: 3 for the mean of R@1, R@5 and R@10.

    Raises:
        ValueError: If it is no percentage, or there are no queries.
    """
    try:
        value = Decimal(printed)
    except InvalidOperation:
        raise ValueError(f"got the value {printed!r}, expected a percentage such as '64.10'") from None
    if not value.is_finite() or not 0 <= value <= 100 or queries < 1 or values < 1:
        raise ValueError(
            f"got the value {printed} of {queries} queries, expected 0 to 100 and at least one query"
        )
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    step = Decimal(1).scaleb(min(exponent, 0))
    total = Decimal(queries * values)
    first = math.ceil((value - step / 2) * total / 100)
    last = math.floor((value + step / 2) * total / 100)
    beyond = math.ceil((value + step) * total / 100)
    near = int((value * total / 100).to_integral_value())
    digits = max(-exponent, 0)
    return Lattice(
        printed=str(printed),
        queries=queries,
        hits=tuple(range(max(first, 0), min(last, queries * values) + 1)),
        cut=tuple(range(math.ceil(value * total / 100), min(beyond, queries * values + 1))),
        nearest=f"{Decimal(100 * near) / total:.{digits}f}",
    )
