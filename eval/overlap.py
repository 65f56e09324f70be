"""Overlap flags: whether an encoder is known to have seen a data set, or its source, in training."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files


class Level(Enum):
    """How much is known."""

    TRAINED_ON = "trained-on"
    """Test items, or their captions in some form, were in training: not a zero-shot number."""
    SAME_SOURCE = "same-source"
    """Pictures of the same source or captions of the same making were."""
    NONE_KNOWN = "none-known"
    """Nothing is known, which is not the same as nothing."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What is known of one encoder and one data set."""

    level: Level
    """How much."""
    why: str = ""
    """In words; empty if nothing is known."""
    source: str = ""
    """Where it is written."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    encoders: tuple[str, ...]
    sets: tuple[str, ...]
    overlap: Overlap


def overlap(encoder: str, *, protocol: str) -> Overlap:
    """Look a pair up in ``eval/data/overlap.toml``.

    Args:
        encoder: Name, label or repository, in any case.
        protocol: Id of the data set, with or without language and ``+partial``.
    """
    name, wanted = encoder.lower(), protocol.lower()
    for entry in _entries():
        if any(wanted.startswith(one) for one in entry.sets) and any(
            fnmatchcase(name, pattern) for pattern in entry.encoders
        ):
            return entry.overlap
    return Overlap(level=Level.NONE_KNOWN)


@cache
def _entries() -> tuple[_Entry, ...]:
    text = files("llm2clip.eval").joinpath("data", "overlap.toml").read_text(encoding="utf-8")
    return tuple(
        _Entry(
            encoders=tuple(one["encoders"]),
            sets=tuple(one["sets"]),
            overlap=Overlap(level=Level(one["level"]), why=one["why"], source=one["source"]),
        )
        for one in tomllib.loads(text)["overlap"]
    )
