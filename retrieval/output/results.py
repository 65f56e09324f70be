"""Queries and their hits, and how they are shown: tables, JSON lines, paths, and images in a notebook."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, final

from llm2clip.common.terminal import escape_control
from llm2clip.indexer.core.index_paths import split_key
from llm2clip.retrieval.query.expression import Term, parse
from llm2clip.retrieval.query.languages import guess_language

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from llm2clip.indexer import Hit
    from llm2clip.retrieval.ranking.options import Page

_ITEM = "item:"
_CAPTION_LINES = 2
"""Most lines of a caption in the table."""
_QUERY_CELLS = 400
"""Widest query in the heading of a table."""
_MOST_SHOWN = 60
"""Images that a notebook shows."""
_TILE = (
    "margin:0 8px 8px 0;display:inline-block;vertical-align:top;width:180px;font-size:12px;line-height:1.35"
)
_IMAGE = "width:180px;height:130px;object-fit:cover;border-radius:6px;display:block"
_TEXT = "overflow:hidden;text-overflow:ellipsis;white-space:nowrap"


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query."""

    kind: Literal["text", "image", "combined"]
    """Whether ``label`` is the query text, the name of an image, or both joined with ``+``."""
    label: str
    """The query text, or the path or name of the query image."""
    language: str | None = None
    """BCP 47 tag of the text, if known."""
    gloss: str | None = None
    """An English translation."""
    image: bytes | None = None
    """The encoded query image."""
    parts: tuple[Query, ...] = ()
    """Of a combined query its texts and images."""
    weight: float = 1.0
    """Factor on its vector in a combined query."""
    excluded: bool = False
    """Whether its direction is taken out of the combined query."""

    @property
    def terms(self) -> tuple[Term, ...]:
        """The query as ``Searcher.find`` takes it; images by their labels."""
        return tuple(_term(part) for part in self.parts or (self,))

    @property
    def images(self) -> dict[str, bytes]:
        """The encoded images of the query, by the labels that ``terms`` has."""
        return {part.label: part.image for part in self.parts or (self,) if part.image is not None}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A query and its hits, best first."""

    query: Query
    hits: Sequence[Hit]
    total: int | None = None
    """Images on all pages; ``None``: not counted."""
    cursor: str | None = None
    """Gets the next page; ``None``: there is none."""
    notes: tuple[str, ...] = ()
    """Sentences about the answer."""
    explanation: tuple[str, ...] = ()
    """How it was found, a sentence per step; empty unless asked for."""

    @classmethod
    def of(cls, query: Query, page: Page) -> Answer:
        """A page of a query's answer."""
        return cls(
            query=query,
            hits=page.hits,
            total=page.total,
            cursor=page.cursor,
            notes=page.notes,
            explanation=page.explanation,
        )

    @property
    def missing(self) -> frozenset[str]:
        """URIs of the hits whose local file is not there now: moved, deleted, or on a disk that is not mounted."""
        return frozenset(hit.uri for hit in self.hits if _is_missing(hit))


def _is_missing(hit: Hit) -> bool:
    """Whether the local file of a hit, of a member its container, is not there."""
    if "://" in hit.uri or os.path.exists(hit.uri):
        return False
    container, _, member = hit.uri.rpartition("#")
    return not (member and os.path.exists(container))


def text_query(text: str, *, language: str | None = None, gloss: str | None = None) -> Query:
    """A text query; without ``language``, it is guessed."""
    return Query(kind="text", label=text, language=language or guess_language(text), gloss=gloss)


def combined_query(text: str, images: Sequence[tuple[str, bytes]]) -> Query:
    """One query of a text or expression (if not empty) and of images, each a name and encoded bytes.

    Raises:
        ExpressionError: The text begins like an expression and is not one.
        OSError: An image that it names cannot be read.
    """
    parts = [_part(term) for term in parse(text)] if text or not images else []
    parts += [Query(kind="image", label=name, image=data) for name, data in images]
    if len(parts) == 1 and parts[0].weight == 1:
        return parts[0]
    label = signed_sum((part, part.label) for part in parts)
    return Query(kind="combined", label=label, language=parts[0].language, parts=tuple(parts))


def signed_sum(terms: Iterable[tuple[Query, str]]) -> str:
    """Parts of a query, each with a name, as one reads a sum of them: ``2*beach - people``."""
    label = ""
    for part, name in terms:
        factor = "" if abs(part.weight) == 1 else f"{abs(part.weight):g}*"
        sign = "NOT" if part.excluded else "-" if part.weight < 0 else "+"
        label += f" {sign} {factor}{name}"
    return label.removeprefix(" + ").lstrip()


def _part(term: Term) -> Query:
    if term.kind == "text":
        return replace(text_query(term.value), weight=term.weight, excluded=term.excluded)
    data = Path(term.value).expanduser().read_bytes() if term.kind == "image" else None
    label = term.value if term.kind == "image" else f"{_ITEM}{term.value}"
    return Query(kind="image", label=label, image=data, weight=term.weight, excluded=term.excluded)


def _term(part: Query) -> Term:
    if part.kind == "image" and part.image is None and part.label.startswith(_ITEM):
        return Term(
            kind="item",
            value=part.label.removeprefix(_ITEM),
            weight=part.weight,
            excluded=part.excluded,
        )
    kind: Literal["text", "image"] = "text" if part.kind == "text" else "image"
    return Term(kind=kind, value=part.label, weight=part.weight, excluded=part.excluded)


def caption_for(hit: Hit, language: str | None) -> tuple[str | None, str | None]:
    """The hit's caption and its BCP 47 tag if known, preferring ``language``.

    Captions by language are read from the metadata's ``names`` or ``captions``, as in the sample corpus.
    """
    if language:
        for field in ("names", "captions"):
            by_language = hit.metadata.get(field)
            if isinstance(by_language, Mapping):
                caption = by_language.get(language)
                if isinstance(caption, str) and caption.strip():
                    return caption, language
    return hit.caption, None


def answer_table(answer: Answer, *, width: int) -> RenderableType:
    """A heading with the query and a table of rank, score, image and caption.

    The caption is the last column: terminals disagree on the width of emoji and joined letters, and so nothing is
    pushed out of line. The terminal has at least 80 cells.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    label = _cut(escape_control(answer.query.label), _QUERY_CELLS)
    heading = Text("images like " if answer.query.kind != "text" else "", style="dim")
    heading.append(label, style="bold not dim")
    if answer.query.gloss:
        heading.append(f"  ({escape_control(answer.query.gloss)})", style="dim")
    if not answer.hits:
        said = answer.notes[0] if answer.notes else "nothing found"
        return Group(heading, Text(f"  {said}", style="dim"), *_after(answer), Text())
    days = [capture_day(hit) or "" for hit in answer.hits]
    sure = any(hit.confidence is not None for hit in answer.hits)
    rest = width - (30 if any(days) else 18) - (7 if sure else 0)
    image_cells = max(12, min(30, width // 3, rest // 2))
    names = [image_name(hit, cells=image_cells) for hit in answer.hits]
    folders = _folders(answer.hits, names, cells=image_cells)
    caption_cells = max(10, rest - image_cells)
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("rank", justify="right", width=4)
    table.add_column("score", justify="right", width=6)
    if sure:
        table.add_column("conf.", justify="right", width=5)
    table.add_column("image", max_width=image_cells, no_wrap=True)
    if any(days):
        table.add_column("taken", width=10)
    table.add_column("caption", max_width=caption_cells)
    missing = answer.missing
    for hit, day, name, folder in zip(answer.hits, days, names, folders, strict=True):
        image = Text(name, style="strike" if hit.uri in missing else "")
        table.add_row(
            str(hit.rank),
            f"{hit.score:.3f}",
            *([_percent(hit)] if sure else []),
            image.append(f"\n{folder}", style="dim") if folder else image,
            *([day] if any(days) else []),
            # Lines break at words, so fewer cells are filled than there are.
            Text(
                ("(file is missing) " if hit.uri in missing else "")
                + (f"(+{len(hit.duplicates)}) " if hit.duplicates else "")
                + _shown_caption(hit, answer.query.language, int(_CAPTION_LINES * caption_cells * 0.9))
            ),
        )
    return Group(heading, table, *_after(answer), Text())


def _folders(hits: Sequence[Hit], names: Sequence[str], *, cells: int) -> list[str]:
    """For each hit whose name is another's too, its folder from where theirs differ; for the others nothing."""
    from rich.cells import cell_len

    folders = []
    for hit in hits:
        place = PurePath(hit.index or "", *split_key(escape_control(hit.key)))
        folders.append("/".join((*place.parent.parts, "")))
    shown = []
    for folder, name in zip(folders, names, strict=True):
        alike = [other for other, its_name in zip(folders, names, strict=True) if its_name == name]
        shared = len(os.path.commonprefix(alike))  # noqa: RUF071 (characters are meant)
        start = folder.rfind("/", 0, shared) + 1
        part = folder[start:] or "./"
        if cell_len(part) > cells and shared - start > cells // 2:
            part = f"…{folder[shared - 1 :]}"
        shown.append(part if len(alike) > 1 else "")
    return shown


def _percent(hit: Hit) -> str:
    return "" if hit.confidence is None else f"{hit.confidence:.0%}"


def _after(answer: Answer) -> list[Text]:
    """Lines below a table: how many images there are, and how they were found."""
    from rich.text import Text

    lines = []
    if answer.hits and answer.cursor and answer.total is not None:
        first, last = answer.hits[0].rank, answer.hits[-1].rank
        page = (last - 1) // max(1, last - first + 1) + 2
        shown = f"{first} to {last}" if first < last else str(first)
        lines.append(f"  {shown} of {answer.total:,}; more with --page {page}")
    lines += [f"  {escape_control(step)}" for step in answer.explanation]
    return [Text(line, style="dim") for line in lines]


def capture_day(hit: Hit) -> str | None:
    """The day on which the image was taken, as ISO 8601; None if only the time of its file is known."""
    return None if hit.time is None or hit.time_source == "file" else escape_control(hit.time)[:10]


def image_name(hit: Hit, *, cells: int) -> str:
    """The hit's key in at most ``cells`` columns, cut at the front."""
    from rich.cells import cell_len

    key = escape_control(hit.key)
    _, member = split_key(key)
    last = PurePath(member).name
    name = next((part for part in (key, member, f"…/{last}", last) if cell_len(part) <= cells), member)
    return cut_front(name, cells=cells)


def cut_front(text: str, *, cells: int) -> str:
    """A text in at most so many columns, cut at its front."""
    from rich.cells import cell_len

    while cell_len(text) > cells:
        text = f"…{text.removeprefix('…')[1:]}"
    return text


def answer_record(answer: Answer) -> dict[str, Any]:
    """An answer as JSON-ready values: ``query``, ``kind``, ``language`` and ``hits``, best first.

    ``missing`` of a hit says that its local file is not there now, ``duplicates`` where the copies folded into it are.
    """
    missing = answer.missing
    return {
        "query": answer.query.label,
        "kind": answer.query.kind,
        "language": answer.query.language,
        "hits": [
            {
                "rank": hit.rank,
                "score": round(float(hit.score), 6),
                "confidence": None if hit.confidence is None else round(hit.confidence, 4),
                "id": hit.id,
                "key": hit.key,
                "uri": hit.uri,
                "caption": hit.caption,
                "width": hit.width,
                "height": hit.height,
                "metadata": dict(hit.metadata),
                "time": hit.time,
                "time_source": hit.time_source,
                "missing": hit.uri in missing,
                "duplicates": [copy.uri for copy in hit.duplicates],
                **({"index": hit.index} if hit.index else {}),
            }
            for hit in answer.hits
        ],
        "total": answer.total,
        "cursor": answer.cursor,
        "notes": list(answer.notes),
        **({"explanation": list(answer.explanation)} if answer.explanation else {}),
    }


def answer_json(answer: Answer, *, ascii_only: bool = False) -> str:
    """``answer_record`` as one line of JSON, with everything outside ASCII escaped on request."""
    line = json.dumps(answer_record(answer), ensure_ascii=False)
    # A file name that is not UTF-8 holds lone surrogates, which cannot be encoded as UTF-8.
    if ascii_only or any("\ud800" <= char <= "\udfff" for char in line):
        return json.dumps(answer_record(answer), ensure_ascii=True)
    return line


def answer_paths(answer: Answer) -> Iterator[str]:
    """The hits' paths; for a member of a tar, the tar's path, ``#`` and the member's name."""
    return (hit.uri for hit in answer.hits)


def _shown_caption(hit: Hit, language: str | None, cells: int) -> str:
    caption, _ = caption_for(hit, language)
    return _cut(escape_control(caption or ""), cells)


def _cut(text: str, cells: int) -> str:
    from rich.cells import cell_len

    if cell_len(text) <= cells:
        return text
    text = text[:cells]
    while text and cell_len(text) + 2 > cells:
        text = text[:-1]
    at_word = text.rpartition(" ")[0]
    return f"{(at_word if 2 * len(at_word) > len(text) else text).rstrip()} …"


@final
class Hits(list["Hit"]):
    """The hits of one query, best first: a list that Jupyter shows as a gallery. Copies of it are ordinary lists."""

    def __init__(self, hits: Iterable[Hit], *, thumbnail: Callable[[Hit], str | None]) -> None:
        """``thumbnail`` gives an image as a ``data:`` URI; ``None`` or an ``OSError`` if it cannot be shown."""
        super().__init__(hits)
        self._thumbnail = thumbnail

    def __reduce__(self) -> tuple[type[list[Hit]], tuple[list[Hit]]]:
        return list, (list(self),)

    def _repr_html_(self) -> str:
        if not self:
            return "<p>Nothing found.</p>"
        rest = f"<p>and {len(self) - _MOST_SHOWN:,} more</p>" if len(self) > _MOST_SHOWN else ""
        return f"<div>{''.join(map(self._figure, self[:_MOST_SHOWN]))}</div>{rest}"

    def _figure(self, hit: Hit) -> str:
        try:
            image = self._thumbnail(hit)
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
