"""What nano should reach, fixed before it was trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llm2clip.eval.nano_report.measures import CUT_TOKENS, Measurement


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound on one number of the report."""

    text: str
    """What is bounded, for the table."""
    table: str
    """Where to find the number: see :class:`Measurement`."""
    subject: str
    row: str
    metric: str
    bound: float
    """The least value allowed, or the greatest where ``at_most`` is set."""
    at_most: bool = False
    """Smaller is better."""

    def find(self, measurements: Iterable[Measurement]) -> Measurement | None:
        """The number this target bounds, with the blocks on; ``None`` if it was not measured."""
        key = (self.table, self.subject, self.row, self.metric)
        for one in measurements:
            if one.blocks and (one.table, one.subject, one.row, one.metric) == key:
                return one
        return None

    def met(self, value: float) -> bool:
        """Whether ``value`` respects the bound."""
        return value <= self.bound if self.at_most else value >= self.bound


def _names(style: str, row: str, metric: str, bound: float) -> Target:
    whose = "mean over languages" if row == "mean" else row
    return Target(
        text=f"{style}, name to image, {whose}, {metric}",
        table="names",
        subject=style,
        row=row,
        metric=metric,
        bound=bound,
    )


def _scenes(text: str, row: str, metric: str, bound: float) -> Target:
    return Target(text=text, table="scenes", subject="scenes", row=row, metric=metric, bound=bound)


TARGETS = (
    _names("openmoji", "en", "R@1", 40),
    _names("openmoji", "en", "R@5", 60),
    _names("openmoji", "mean", "R@5", 45),
    _names("noto", "en", "R@1", 70),
    _names("noto", "mean", "R@5", 80),
    _scenes("scenes, whole caption, R@1", "en", "R@1", 50),
    _scenes(f"scenes, R@1 over R@1 of {CUT_TOKENS} tokens", "en", f"R@1 over R@1 of {CUT_TOKENS} tokens", 3),
    _scenes("captions that differ in the last object, told apart", "twins: last object", "told apart", 75),
    _scenes("captions with two places swapped, told apart", "twins: two places swapped", "told apart", 65),
    Target(
        text="one query, one thread, median",
        table="cost",
        subject="speed",
        row="query",
        metric="median",
        bound=20,
        at_most=True,
    ),
    Target(
        text="images embedded a second",
        table="cost",
        subject="speed",
        row="images, from files",
        metric="rate",
        bound=200,
    ),
    Target(
        text="weights",
        table="cost",
        subject="size",
        row="weights",
        metric="size",
        bound=20,
        at_most=True,
    ),
)
