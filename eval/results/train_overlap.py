"""Overlap flags: whether an encoder is known to have seen a data set, or its source, in training."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
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
    """Images of the same source or captions of the same making were."""
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


NOTHING_KNOWN = Overlap(level=Level.NONE_KNOWN)
"""Of most pairs."""
_UNTRAINED = "random-"
"""Begins the names of encoders with random weights (``chance.py``), which have seen nothing."""


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
    if name.startswith(_UNTRAINED):
        return NOTHING_KNOWN
    for entry in _entries():
        if any(wanted.startswith(one) for one in entry.sets) and any(
            fnmatchcase(name, pattern) for pattern in entry.encoders
        ):
            return entry.overlap
    return NOTHING_KNOWN


def known_overlap(names: Sequence[str], protocol: str) -> Overlap:
    """What is known under any of an encoder's names, such as its repository's; empty ones are passed over."""
    found = (overlap(name, protocol=protocol) for name in names if name)
    return next((one for one in found if one.level is not Level.NONE_KNOWN), NOTHING_KNOWN)


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
