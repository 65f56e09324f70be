"""``Hit``: one answer of a search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A picture found, with everything the index knows about it."""

    id: int
    """Number of the picture in this index; a rebuilt index may number anew."""
    key: str
    """Stable name within the corpus: the path below its root with forward slashes, ``shard.tar#member`` in a tar."""
    score: float
    """Inner product of the query with the stored vector, -1 to 1 (rounding apart), higher is better."""
    rank: int
    """Place in the answer, from 1. Equal scores are ranked by id."""
    uri: str
    """Where the picture is: a file path, or the path of a tar, ``#`` and the member."""
    caption: str | None = None
    """The caption that came with the picture."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What else came with the picture, as read from its JSON."""
    width: int
    """Width as shown (after EXIF rotation), in pixels."""
    height: int
    """Height as shown, in pixels."""
