"""Hits as a notebook shows them: images side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from typing import TYPE_CHECKING, final

from llm2clip.common.terminal import escape_control

if TYPE_CHECKING:
    from llm2clip.indexer import Hit

_MOST = 60
"""Images that are shown."""
_TILE = (
    "margin:0 8px 8px 0;display:inline-block;vertical-align:top;width:180px;font-size:12px;line-height:1.35"
)
_IMAGE = "width:180px;height:130px;object-fit:cover;border-radius:6px;display:block"
_TEXT = "overflow:hidden;text-overflow:ellipsis;white-space:nowrap"


@final
class Hits(list["Hit"]):
    """The hits of one query, best first: a list that Jupyter shows as a gallery. Copies of it are ordinary lists."""

    def __init__(self, hits: Iterable[Hit], *, read_image: Callable[[Hit], bytes]) -> None:
        """``read_image`` gives the encoded image of a hit, as ``Searcher.read_image`` does."""
        super().__init__(hits)
        self._read_image = read_image

    def __reduce__(self) -> tuple[type[list[Hit]], tuple[list[Hit]]]:
        return list, (list(self),)

    def _repr_html_(self) -> str:
        if not self:
            return "<p>Nothing found.</p>"
        rest = f"<p>and {len(self) - _MOST:,} more</p>" if len(self) > _MOST else ""
        return f"<div>{''.join(map(self._figure, self[:_MOST]))}</div>{rest}"

    def _figure(self, hit: Hit) -> str:
        from llm2clip.retrieval.gallery import thumbnail

        try:
            image = thumbnail(self._read_image(hit))
        except (OSError, ValueError):
            image = None
        name = hit.caption or hit.key.rpartition("/")[2]
        caption, place = (escape(escape_control(text), quote=True) for text in (name, hit.uri))
        sure = f"{hit.score:.3f}" if hit.confidence is None else f"{hit.score:.3f}, {hit.confidence:.0%} sure"
        shown = (
            f'<img src="{image}" alt="{caption}" style="{_IMAGE}">' if image else "The original is missing."
        )
        return (
            f'<figure title="{place}" style="{_TILE}">{shown}<figcaption style="{_TEXT}"><b>{hit.rank}</b> '
            f"{caption}<br>{sure}</figcaption></figure>"
        )
