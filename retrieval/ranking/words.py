"""Images by words: of their captions, file names, and what else came with them or is in the file (EXIF, IPTC)."""

from __future__ import annotations

import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llm2clip.indexer.core.index_paths import split_key

if TYPE_CHECKING:
    from llm2clip.indexer import SearchableIndex

MOST_MATCHES = 200
"""Most images that are found by words."""
WORD_WEIGHT, RANK_OFFSET = 2.0, 60
"""Reciprocal rank fusion: an image at rank r of a list gets weight / (60 + r); 1 is the weight of the list by score."""
_NAME = re.compile(
    r"(?=\S{4})\S*\d\S*|\S+\.(?:jpe?g|png|webp|gif|tiff?|bmp|hei[cf]|avif|cr2|nef|arw|dng)", re.IGNORECASE
)
"""What looks like a file name: one word of four characters with a digit, or with the ending of an image."""
_WORD = re.compile(r"\w+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Scripts without spaces between words, searched by characters."""
_tables: WeakKeyDictionary[SearchableIndex, tuple[sqlite3.Connection, Lock]] = WeakKeyDictionary()
_building = Lock()


def is_name(text: str) -> bool:
    """Whether a query looks like the name of a file."""
    return _NAME.fullmatch(text) is not None


def named(index: SearchableIndex, text: str) -> list[int]:
    """Ids of the images whose file name holds a text, those that are called so first."""
    wanted = PurePosixPath(text).stem if is_name(text) and "." in text else text
    escaped = re.sub(r"([\\%_])", r"\\\1", wanted)
    found = index.like_key(f"%{escaped}%", limit=10_000)
    names = {id: PurePosixPath(split_key(key)[1]) for id, key in found}
    folded = wanted.casefold()
    within = [id for id, name in names.items() if folded in name.name.casefold()]
    order = sorted(within, key=lambda id: (names[id].stem.casefold() != folded, id))
    return order[:MOST_MATCHES]


def matching(index: SearchableIndex, text: str, *, captions_only: bool) -> list[int]:
    """Ids of the images whose words include all of a text, best first (BM25).

    Args:
        index: The index. Its words are read at the first call, some 50,000 images a second.
        text: What is searched for; single letters do not count.
        captions_only: Whether names and metadata are left out.
    """
    terms = [f'"{word}"' for word in _words(text) if len(word) > 1 or not word.isascii() or word.isdigit()]
    if not terms:
        return []
    asked = " AND ".join(terms)
    if captions_only:
        asked = f"caption : ({asked})"
    table, lock = _table(index)
    with lock:
        rows = table.execute(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, 4, 2, 1), rowid LIMIT ?",
            (asked, MOST_MATCHES),
        ).fetchall()
    return [id for (id,) in rows]


def fused(by_score: Sequence[int], by_words: Sequence[int]) -> list[int]:
    """Two lists of ids, each best first, as one: reciprocal rank fusion, equal ones as they are by score."""
    points: dict[int, float] = {}
    for weight, ids in ((1.0, by_score), (WORD_WEIGHT, by_words)):
        for rank, id in enumerate(ids, start=1):
            points[id] = points.get(id, 0.0) + weight / (RANK_OFFSET + rank)
    return sorted(points, key=lambda id: -points[id])


def _table(index: SearchableIndex) -> tuple[sqlite3.Connection, Lock]:
    """The words of an index in memory, as a full-text table of SQLite."""
    with _building:
        if (known := _tables.get(index)) is None:
            table = sqlite3.connect(":memory:", check_same_thread=False)
            table.execute(
                "CREATE VIRTUAL TABLE words USING fts5(name, caption, about, content='', "
                'tokenize="unicode61 remove_diacritics 2")'
            )
            for rows in index.texts():
                table.executemany(
                    "INSERT INTO words(rowid, name, caption, about) VALUES (?, ?, ?, ?)", map(_row, rows)
                )
            known = _tables[index] = table, Lock()
        return known


def _row(item: tuple[int, str, str | None, str | None]) -> tuple[int, str, str, str]:
    id, key, caption, metadata = item
    told = json.loads(metadata) if metadata else {}
    captions = [caption or "", *_texts(told.get("captions")), *_texts(told.get("names"))]
    name, about = split_key(key)[1], " ".join(_texts(told))
    return id, _spaced(name), _spaced(" ".join(captions)), _spaced(about)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401
    """All texts within a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _spaced(text: str) -> str:
    """The words of a text, the characters of scripts without spaces each as one."""
    return " ".join(_words(text))


def _words(text: str) -> list[str]:
    """Words as the table has them; those of scripts without spaces are phrases of characters."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("_", " ")
    return [_UNSPACED.sub(r" \g<0> ", word).strip() for word in _WORD.findall(folded)]
