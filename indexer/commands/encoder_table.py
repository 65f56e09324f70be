"""The list of encoders as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from textwrap import fill
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from llm2clip.encoders import EncoderCard

_RECALLS = {"R@1": "flickr30k_t2i_r1", "zh R@1": "flickr30k_cn_t2i_r1"}
"""Heading -> the published recall in that column."""
_HEADINGS = ("", "languages", "params", "download", "memory", "dim", "px", "text", *_RECALLS, "here")
_LEFT = frozenset({"", "languages", "here"})
_OPTIONAL = ("params", "dim", "px", "zh R@1", "text", "download", "memory", "here", "R@1")
"""Columns that a narrow terminal goes without, in this order."""
_WIDEST = 116
"""Width of the legend, in characters."""
_LEGEND = (
    "params: number of parameters. memory: weights in float32, language models in bfloat16; image + text tower where "
    "they are loaded separately. px: image size. text: maximum number of tokens. languages: those of the training "
    "texts; +: was measured on others too; mul: many. R@1: text to image on Flickr30k and Flickr30k-CN, as published; "
    "~: of the nearest published setting. here: on this machine; the others are downloaded on first use. All details: "
    "--json."
)


def table(cards: Iterable[EncoderCard], *, width: int | None = None) -> str:
    """All encoders by family, one line each, and a legend; columns that do not fit are left out, by importance."""
    groups = [(family, list(group)) for family, group in groupby(cards, lambda card: card.family)]
    headings = list(_HEADINGS)
    for name in ("", *_OPTIONAL):
        headings = [heading for heading in headings if not name or heading != name]
        text = _rendered(groups, headings)
        if width is None or max(map(len, text.splitlines())) <= width:
            break
    absent = [heading for heading in _HEADINGS if heading not in headings]
    legend = _LEGEND + (f" A wider terminal shows {', '.join(absent)} as well." if absent else "")
    return f"{text}\n\n{fill(legend, min(width or _WIDEST, _WIDEST))}"


def _rendered(groups: Iterable[tuple[str, list[EncoderCard]]], headings: Sequence[str]) -> str:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _LEFT else "right", no_wrap=True)
    for family, cards in groups:
        table.add_row(family)
        for card in cards:
            cells = _cells(card)
            table.add_row(*(cells[heading] for heading in headings))
    console = Console(width=1_000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _cells(card: EncoderCard) -> dict[str, str]:
    return {
        "": f"  {card.name}",
        "params": _short(card.parameters),
        "download": f"{_short(card.download_bytes)}B" if card.download_bytes else "-",
        "memory": _memory(card.memory),
        "dim": str(card.dim),
        "px": str(card.image_size),
        "text": str(card.max_text_tokens),
        "languages": _languages(card),
        **{heading: _recall(card, key) for heading, key in _RECALLS.items()},
        "here": "yes" if card.available else "no",
    }


def _short(number: int) -> str:
    """``"579M"``, ``"8.1G"``."""
    return f"{number / 1e9:.1f}G" if number >= 999_500_000 else f"{number / 1e6:.0f}M"


def _memory(memory: Mapping[str, int]) -> str:
    apart = (memory.get("images"), memory.get("texts as bfloat16"))
    sizes = [size for size in apart if size is not None] or list(memory.values())
    return " + ".join(f"{_short(size)}B" for size in sizes[:2])


def _languages(card: EncoderCard) -> str:
    shown = ",".join(card.languages[:3]) + (",..." if len(card.languages) > 3 else "")
    return (shown or "?") + ("+" if card.reads_more else "")


def _recall(card: EncoderCard, key: str) -> str:
    if key in card.recall:
        return f"{card.recall[key]:.1f}"
    return f"~{card.nearest[key]:.1f}" if key in card.nearest else "-"
