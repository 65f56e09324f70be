"""The encoders there are, as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Protocol

_RECALLS = {"R@1": "flickr30k_t2i_r1", "zh R@1": "flickr30k_cn_t2i_r1"}
"""Heading -> which published recall stands below it."""
_HEADINGS = ("", "params", "download", "memory", "dim", "px", "text", "languages", *_RECALLS, "here")
_LEFT = frozenset({"", "languages", "here"})
_LEGEND = """\
params: trained numbers. memory: weights in float32, language models in bfloat16; pictures + texts where the two are
loaded apart. px: side of the picture it looks at. text: tokens that are read. languages: those of its training
texts; + means that it was measured to read others, mul many. R@1: text to image on Flickr30k and Flickr30k-CN, as
published; ~ is that of the nearest published setting. here: on this machine; the others are downloaded when they are
first used. All that is known of each: --json."""


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
    def here(self) -> bool: ...  # noqa: D102


def table(cards: Iterable[Card]) -> str:
    """All encoders, family by family, one line each, and what the columns mean."""
    groups = [(family, [_cells(card) for card in group]) for family, group in groupby(cards, _family)]
    rows = [row for _, group in groups for row in group]
    widths = [max(len(row[column]) for row in (_HEADINGS, *rows)) for column in range(len(_HEADINGS))]
    lines = [_line(_HEADINGS, widths)]
    for family, group in groups:
        lines += [family, *(_line(row, widths) for row in group)]
    return "\n".join([*lines, "", _LEGEND])


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
        "yes" if card.here else "no",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    parts = [
        cell.ljust(width) if heading in _LEFT else cell.rjust(width)
        for cell, width, heading in zip(cells, widths, _HEADINGS, strict=True)
    ]
    return "  ".join(parts).rstrip()


def _short(number: int) -> str:
    """``"579M"``, ``"8.1G"``."""
    return f"{number / 1e9:.1f}G" if number >= 999_500_000 else f"{number / 1e6:.0f}M"


def _memory(memory: Mapping[str, int]) -> str:
    apart = (memory.get("pictures"), memory.get("texts as bfloat16"))
    sizes = [size for size in apart if size is not None] or list(memory.values())
    return " + ".join(f"{_short(size)}B" for size in sizes[:2])


def _languages(card: Card) -> str:
    shown = ",".join(card.languages[:3]) + (",..." if len(card.languages) > 3 else "")
    return (shown or "?") + ("+" if card.reads_more else "")


def _recall(card: Card, key: str) -> str:
    if key in card.recall:
        return f"{card.recall[key]:.1f}"
    return f"~{card.nearest[key]:.1f}" if key in card.nearest else "-"
