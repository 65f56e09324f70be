"""Names of the files of an index. Whatever a manifest or a table names is checked against them before it is touched."""

from __future__ import annotations

import re
from typing import Literal

_DIGITS = r"(\d{5,18})"  # fits into 64 bits
_NAMES = {
    "items": re.compile(rf"items-{_DIGITS}\.db", re.ASCII),
    "vectors": re.compile(rf"vectors-{_DIGITS}-\d{{5,18}}\.npy", re.ASCII),
    "candidates": re.compile(rf"candidates-{_DIGITS}\.faiss", re.ASCII),
}
MAX_GENERATION = 10**18 - 1
"""Largest number of a generation."""


def items_name(generation: int) -> str:
    """File name of the items of a generation."""
    return f"items-{generation:05d}.db"


def ann_name(generation: int) -> str:
    """File name of the ANN index of a generation."""
    return f"candidates-{generation:05d}.faiss"


def segment_name(generation: int, number: int) -> str:
    """File name of a segment of vectors."""
    return f"vectors-{generation:05d}-{number:05d}.npy"


def is_name(name: object, kind: Literal["items", "vectors", "candidates"]) -> bool:
    """Whether something is the name of a file of a kind: never a path, so never a file outside the folder."""
    return isinstance(name, str) and _NAMES[kind].fullmatch(name) is not None


def generation_of(name: str) -> int | None:
    """The generation that a file belongs to; None if it is no file of an index."""
    bare = re.sub(r"-(?:journal|wal|shm)$", "", name)
    found = next(filter(None, (pattern.fullmatch(bare) for pattern in _NAMES.values())), None)
    return int(found[1]) if found else None
