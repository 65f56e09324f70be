"""Answers for a terminal and for other programs: tables, JSON lines, bare paths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from llm2clip.common.terminal import escape_control
from llm2clip.retrieval.results import Answer, caption_for

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llm2clip.indexer import Hit

_CAPTION_LINES = 2
"""A caption longer than this many lines of its column is cut, with an ellipsis."""
_EMOJI_CHARACTERS = 40
"""Metadata that says ``emoji`` is shown beside the caption up to this length."""
_QUERY_CELLS = 400
"""A query longer than this many cells is cut in the table's heading."""


def answer_table(answer: Answer, *, width: int) -> RenderableType:
    """A heading with the query and a table of rank, score, image and caption.

    The caption, whose width a terminal may reckon differently (emoji, joined letters), is the last column and
    no border stands right of it, so that nothing is ever pushed out of line.

    Args:
        answer: What to show.
        width: Cells the terminal has; 80 suffices.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    label = _cut(escape_control(answer.query.label), _QUERY_CELLS)
    heading = Text("images like " if answer.query.kind == "image" else "", style="dim")
    heading.append(label, style="bold not dim")
    if answer.query.gloss:
        heading.append(f"  ({escape_control(answer.query.gloss)})", style="dim")
    if not answer.hits:
        return Group(heading, Text("  nothing found", style="dim"), Text())
    image_cells = max(12, min(30, width // 3))
    caption_cells = max(10, width - image_cells - 18)
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("rank", justify="right", width=4)
    table.add_column("score", justify="right", width=6)
    table.add_column("image", max_width=image_cells, no_wrap=True)
    table.add_column("caption", max_width=caption_cells)
    for hit in answer.hits:
        table.add_row(
            str(hit.rank),
            f"{hit.score:.3f}",
            Text(image_name(hit, cells=image_cells)),
            # Lines break at words, so fewer cells are filled than there are.
            Text(_shown_caption(hit, answer.query.language, int(_CAPTION_LINES * caption_cells * 0.9))),
        )
    return Group(heading, table, Text())


def image_name(hit: Hit, *, cells: int) -> str:
    """The hit's key in at most ``cells`` columns; what is cut is cut in front, where paths say least."""
    from rich.cells import cell_len

    key = escape_control(hit.key)
    member = key.rpartition("#")[2]
    last = PurePath(member).name
    name = next((part for part in (key, member, f"…/{last}", last) if cell_len(part) <= cells), member)
    while cell_len(name) > cells:
        name = f"…{name.removeprefix('…')[1:]}"
    return name


def answer_record(answer: Answer) -> dict[str, Any]:
    """An answer as JSON-ready values: ``query``, ``kind``, ``language`` and ``hits``, best first."""
    return {
        "query": answer.query.label,
        "kind": answer.query.kind,
        "language": answer.query.language,
        "hits": [
            {
                "rank": hit.rank,
                "score": round(float(hit.score), 6),
                "id": hit.id,
                "key": hit.key,
                "uri": hit.uri,
                "caption": hit.caption,
                "width": hit.width,
                "height": hit.height,
                "metadata": dict(hit.metadata),
            }
            for hit in answer.hits
        ],
    }


def answer_json(answer: Answer, *, ascii_only: bool = False) -> str:
    """``answer_record`` on one line of JSON.

    Args:
        answer: What to write.
        ascii_only: Escape everything outside ASCII, for outputs that cannot carry it.
    """
    line = json.dumps(answer_record(answer), ensure_ascii=False)
    # A file name that is no UTF-8 holds lone surrogates, which no JSON reader could decode from bytes.
    if ascii_only or any("\ud800" <= char <= "\udfff" for char in line):
        return json.dumps(answer_record(answer), ensure_ascii=True)
    return line


def answer_paths(answer: Answer) -> Iterator[str]:
    """The hits' places: a file's path, or a tar's path, ``#`` and the member's name."""
    return (hit.uri for hit in answer.hits)


def _shown_caption(hit: Hit, language: str | None, cells: int) -> str:
    caption, _ = caption_for(hit, language)
    text = _cut(escape_control(caption or ""), cells)
    emoji = hit.metadata.get("emoji")
    if isinstance(emoji, str) and 0 < len(emoji) <= _EMOJI_CHARACTERS:
        text = f"{text}  {escape_control(emoji)}" if text else escape_control(emoji)
    return text


def _cut(text: str, cells: int) -> str:
    from rich.cells import cell_len

    if cell_len(text) <= cells:
        return text
    text = text[:cells]
    while text and cell_len(text) + 2 > cells:
        text = text[:-1]
    at_word = text.rpartition(" ")[0]
    return f"{(at_word if 2 * len(at_word) > len(text) else text).rstrip()} …"
