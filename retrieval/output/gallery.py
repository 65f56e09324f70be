"""Answers as one self-contained HTML page: images as data URIs, nothing fetched, no script.

Queries, captions, keys and metadata are escaped, and the Content-Security-Policy allows only inline style and
``data:`` images.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path, PurePath
from string import Template
from typing import TYPE_CHECKING

from llm2clip.common.files import write_output
from llm2clip.common.terminal import escape_control
from llm2clip.indexer.core.index_paths import split_key
from llm2clip.retrieval.output.results import Answer, Query, caption_for, capture_day, signed_sum

if TYPE_CHECKING:
    from PIL.Image import Image

    from llm2clip.indexer import Hit

_SIDE = 320
"""Longer side of a thumbnail in pixels: 220 CSS pixels at a device pixel ratio of 1.5."""
_LONG = 120
"""Characters from which a query is set as a paragraph, not as a heading."""


@dataclass
class _Page:
    """State of one page: the source of images, and the thumbnails already made."""

    read_image: Callable[[Hit], bytes]
    made: dict[tuple[str | None, int], str | None] = field(default_factory=dict)

    def image(self, hit: Hit) -> str | None:
        key = (hit.index, hit.id)
        if key not in self.made:
            try:
                self.made[key] = thumbnail(self.read_image(hit))
            except (OSError, ValueError):
                self.made[key] = None
        return self.made[key]


def write_gallery(
    path: str | Path, answers: Sequence[Answer], *, read_image: Callable[[Hit], bytes], subtitle: str = ""
) -> Path:
    """Write ``render_gallery`` to a file, creating its folder; returns the absolute path."""
    target = Path(path).absolute()
    write_output(target, render_gallery(answers, read_image=read_image, subtitle=subtitle))
    return target


def render_gallery(
    answers: Sequence[Answer], *, read_image: Callable[[Hit], bytes], subtitle: str = ""
) -> str:
    """The page as a string, with one line under its heading.

    ``read_image`` gives the encoded image of a hit, as ``Searcher.read_image`` does. For an image that cannot be read
    (``OSError``, ``ValueError``) or decoded, the page shows a message.
    """
    page = _Page(read_image)
    template = Template(files(__package__).joinpath("gallery.html").read_text("utf-8"))
    return template.substitute(
        subtitle=_text(subtitle),
        contents=_contents(answers),
        sections="\n".join(_section(number, answer, page) for number, answer in enumerate(answers, start=1)),
    )


def thumbnail(data: bytes) -> str | None:
    """A thumbnail as a ``data:`` URI, decoded as the encoders do; ``None`` if it cannot be decoded or is too large."""
    try:
        return "data:image/webp;base64," + base64.b64encode(small_webp(data, side=_SIDE)).decode("ascii")
    except ValueError:
        return None


def small_webp(data: bytes, *, side: int) -> bytes:
    """An encoded image as WebP of at most ``side`` pixels a side; ``ValueError`` if it cannot be decoded."""
    buffer = io.BytesIO()
    small_image(data, side=side).save(buffer, "WEBP", quality=82, method=4)
    return buffer.getvalue()


def small_image(data: bytes, *, side: int) -> Image:
    """An encoded image in at most ``side`` pixels a side, RGB; ``ValueError`` if it cannot be decoded."""
    from llm2clip.encoders.images.decode import decode

    image, _, _ = decode(data, draft=side)  # a large JPEG at a part of its size, which is many times faster
    image.thumbnail((side, side))
    return image


def _text(text: str) -> str:
    """Safe inside an element or a quoted attribute."""
    return escape(escape_control(text), quote=True)


def _lang(language: str | None) -> str:
    return f' lang="{_text(language)}"' if language else ""


def _contents(answers: Sequence[Answer]) -> str:
    if len(answers) < 3:
        return ""
    links = "".join(
        f'<li><a href="#q{number}" dir="auto"{_lang(query.language)}>{_text(_short(query))}</a></li>'
        for number, query in enumerate((answer.query for answer in answers), start=1)
    )
    return f'<nav aria-label="Queries"><ul>{links}</ul></nav>'


def _short(query: Query) -> str:
    label = Path(query.label).name if query.kind == "image" else query.label
    if query.kind == "combined":
        label = signed_sum((part, _short(part)) for part in query.parts)
    return label if len(label) <= 60 else label[:59].rstrip() + "…"


def _section(number: int, answer: Answer, page: _Page) -> str:
    found = "\n".join(_card(hit, answer.query, page) for hit in answer.hits)
    body = f'<ol class="hits">\n{found}\n</ol>' if found else '<p class="none">Nothing found.</p>'
    heading = _heading(number, answer.query)
    return f'<section id="q{number}" aria-labelledby="h{number}">\n{heading}\n{body}\n</section>'


def _heading(number: int, query: Query) -> str:
    if query.kind == "text":
        kind = ' class="long"' if len(query.label) > _LONG else ""
        gloss = f'<p class="gloss" lang="en">{_text(query.gloss)}</p>' if query.gloss else ""
        return f'<h2 id="h{number}" dir="auto"{kind}{_lang(query.language)}>{_text(query.label)}</h2>{gloss}'
    name = _text(_short(query))
    images = [(thumbnail(part.image), part) for part in query.parts or (query,) if part.image is not None]
    shown = "".join(
        f'<img src="{image}" alt="The query image, {_text(_short(part))}">' for image, part in images if image
    )
    return (
        f'<div class="asked">{shown}<h2 id="h{number}">'
        f'<span class="kind">Images like</span><bdi>{name}</bdi></h2></div>'
    )


def _card(hit: Hit, query: Query, page: _Page) -> str:
    caption, language = caption_for(hit, query.language)
    name = PurePath(split_key(hit.key)[1]).name
    shown_name = f'<span class="key" title="{_text(hit.key)}">{_text(name)}</span>' if caption else ""
    caption = caption or name
    day = capture_day(hit)
    taken = f'<time datetime="{_text(day)}">{_text(day)}</time>' if day else ""
    copies = f'<span title="copies of this image">+{len(hit.duplicates)}</span>' if hit.duplicates else ""
    sure = f" · {hit.confidence:.0%}" if hit.confidence is not None else ""
    return (
        f"<li><figure>{_frame(hit, page, caption=caption, language=language)}<figcaption>"
        f'<span class="caption" dir="auto"{_lang(language)} title="{_text(caption)}">{_text(caption)}</span>'
        f'<span class="meta"><span class="rank">{hit.rank}</span>{shown_name}'
        f'{taken}{copies}<span class="score">{hit.score:.3f}{sure}</span></span>'
        "</figcaption></figure></li>"
    )


def _frame(hit: Hit, page: _Page, *, caption: str, language: str | None) -> str:
    """The thumbnail, which opens the original where that has a file of its own; or where the original was."""
    image = page.image(hit)
    if not image:
        return (
            '<div class="image lost"><span>This image can no longer be read:<br>'
            f'<span class="path" dir="ltr">{_text(hit.uri)}</span></span></div>'
        )
    shown = f'<img src="{image}" alt="{_text(caption)}"{_lang(language)} loading="lazy" decoding="async">'
    original = _original(hit)
    if original is None:
        return f'<div class="image">{shown}</div>'
    return f'<a class="image" href="{_text(original)}" target="_blank" rel="noreferrer">{shown}</a>'


def _original(hit: Hit) -> str | None:
    """A URL that a browser opens; None for a member of a container, or what lies in a storage service."""
    if hit.uri.startswith(("https://", "http://")):
        return hit.uri
    path = Path(hit.uri)
    return path.as_uri() if "://" not in hit.uri and path.is_absolute() and path.is_file() else None
