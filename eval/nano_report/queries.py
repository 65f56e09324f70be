"""Our list of free-form queries for emoji galleries, and what counts as an answer.

Written before any model was run and without sight of training sentences. The test half only reports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

QUERIES_FILE = Path(__file__).parent.parent / "data" / "queries.json"
"""The shipped list."""

_FIELDS = frozenset({"id", "language", "split", "text", "accept"})


class Split(Enum):
    """What a query may be used for."""

    DEVELOPMENT = "development"
    """May guide training choices."""
    TEST = "test"
    """Only reports."""


@dataclass(frozen=True, kw_only=True)
class FreeQuery:
    """A question in somebody's own words."""

    id: str
    """``<language>-<number>``."""
    language: str
    """Language code."""
    split: Split
    """Development or test."""
    text: str
    """The query, verbatim."""
    accept: frozenset[str]
    """Emoji whose image answers the query, without variation selectors."""


def plain_emoji(emoji: str) -> str:
    """Drop variation selectors (U+FE0F), which fonts, CLDR and keyboards set differently for one emoji."""
    return emoji.replace("\ufe0f", "")


def load_queries(path: Path | None = None) -> tuple[FreeQuery, ...]:
    """Read a list of free-form queries.

    Args:
        path: A JSON file of the same form; by default the shipped ``eval/data/queries.json``.

    Raises:
        ValueError: If the file is not of the expected form.
        OSError: If it cannot be read.
    """
    source = path or QUERIES_FILE
    content = json.loads(source.read_text(encoding="utf-8"))
    entries = content.get("queries") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{source} has no list 'queries', expected an object with at least one query")
    return tuple(_query(entry, source=str(source)) for entry in entries)


def _query(entry: Mapping[str, Any], *, source: str) -> FreeQuery:
    if set(entry) != _FIELDS:
        raise ValueError(f"{source}: got a query with fields {sorted(entry)}, expected {sorted(_FIELDS)}")
    return FreeQuery(
        id=entry["id"],
        language=entry["language"],
        split=Split(entry["split"]),
        text=entry["text"],
        accept=frozenset(map(plain_emoji, entry["accept"])),
    )
