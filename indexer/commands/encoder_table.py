"""The encoders there are, as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Protocol

_RECALLS = {"R@1": "flickr30k_t2i_r1", "zh R@1": "flickr30k_cn_t2i_r1"}
"""Heading -> which published recall stands below it."""
_HEADINGS = ("", "params", "download", "memory", "dim", "px", "text", "languages", *_RECALLS, "here")
_LEFT = frozenset({"", "languages", "here"})
_LEAST_FIRST = ("params", "dim", "px", "zh R@1", "download", "text", "languages")
"""Columns that a narrow terminal goes without, in this order."""
_WIDEST = 116
"""Of the legend, in characters."""
_LEGEND = (
    "params: trained numbers. memory: weights in float32, language models in bfloat16; images + texts where the two "
    "are loaded apart. px: side of the image it looks at. text: tokens that are read. languages: those of its "
    "training texts; + means that it was measured to read others, mul many. R@1: text to image on Flickr30k and "
    "Flickr30k-CN, as published; ~ is that of the nearest published setting. here: on this machine; the others are "
    "downloaded when they are first used. All that is known of each: --json."
)


class Card(Protocol):
    """What is printed of an encoder."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def parameters(self) -> int: ...  # noqa: D102
    @property
    def download_bytes(self) -> int: ...  # noqa: D102
    @property
    def memory(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def max_text_tokens(self) -> int: ...  # noqa: D102
    @property
    def languages(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def reads_more(self) -> bool: ...  # noqa: D102
    @property
    def recall(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def nearest(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def available(self) -> bool: ...  # noqa: D102


def table(cards: Iterable[Card], *, width: int | None = None) -> str:
    """All encoders, family by family, one line each, and what the columns mean.

    Args:
        cards: What is known of each.
        width: Characters of a line; columns that do not fit are left out, the least asked for first. ``None``: all.
    """
    groups = [(family, [_cells(card) for card in group]) for family, group in groupby(cards, _family)]
    rows = [row for _, group in groups for row in group]
    widths = [max(len(row[column]) for row in (_HEADINGS, *rows)) for column in range(len(_HEADINGS))]
    absent = _left_out(widths, width)
    lines = [_line(_HEADINGS, widths, absent)]
    for family, group in groups:
        lines += [family, *(_line(row, widths, absent) for row in group)]
    legend = _LEGEND
    if absent:
        legend += (
            f" A wider terminal shows {', '.join(name for name in _HEADINGS if name in absent)} as well."
        )
    return "\n".join([*lines, "", *wrap(legend, min(width or _WIDEST, _WIDEST))])


def _left_out(widths: Sequence[int], width: int | None) -> frozenset[str]:
    """The columns without which a line is no wider than ``width``."""
    too_much = 0 if width is None else sum(widths) + 2 * (len(widths) - 1) - width
    absent = set()
    for name in _LEAST_FIRST:
        if too_much <= 0:
            break
        absent.add(name)
        too_much -= widths[_HEADINGS.index(name)] + 2
    return frozenset(absent)


def _family(card: Card) -> str:
    return card.family


def _cells(card: Card) -> tuple[str, ...]:
    return (
        f"  {card.name}",
        _short(card.parameters),
        f"{_short(card.download_bytes)}B" if card.download_bytes else "-",
        _memory(card.memory),
        str(card.dim),
        str(card.image_size),
        str(card.max_text_tokens),
        _languages(card),
        *(_recall(card, key) for key in _RECALLS.values()),
        "yes" if card.available else "no",
    )


def _line(cells: Sequence[str], widths: Sequence[int], absent: frozenset[str]) -> str:
    parts = [
        cell.ljust(width) if heading in _LEFT else cell.rjust(width)
        for cell, width, heading in zip(cells, widths, _HEADINGS, strict=True)
        if heading not in absent
    ]
    return "  ".join(parts).rstrip()


def _short(number: int) -> str:
    """``"579M"``, ``"8.1G"``."""
    return f"{number / 1e9:.1f}G" if number >= 999_500_000 else f"{number / 1e6:.0f}M"


def _memory(memory: Mapping[str, int]) -> str:
    apart = (memory.get("images"), memory.get("texts as bfloat16"))
    sizes = [size for size in apart if size is not None] or list(memory.values())
    return " + ".join(f"{_short(size)}B" for size in sizes[:2])


def _languages(card: Card) -> str:
    shown = ",".join(card.languages[:3]) + (",..." if len(card.languages) > 3 else "")
    return (shown or "?") + ("+" if card.reads_more else "")


def _recall(card: Card, key: str) -> str:
    if key in card.recall:
        return f"{card.recall[key]:.1f}"
    return f"~{card.nearest[key]:.1f}" if key in card.nearest else "-"
