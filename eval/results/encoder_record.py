"""What is recorded of an encoder: its identity, the key of its cached vectors, data sets it saw in training."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2clip.common.files import package_version
from llm2clip.eval.results.records import EncoderRecord

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder, EncoderInfo

DISTRIBUTION = "llm2clip-retrieval"
_OVERLAPS = Path(__file__).parent.parent / "data" / "overlap.toml"
_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "faiss-cpu", "faiss-gpu")


def describe(encoder: Encoder, *, label: str = "", parity: str = "native") -> EncoderRecord:
    """Record an encoder."""
    info, runtime = encoder.info, encoder.runtime
    repository, published = _published(info)
    decisive = {
        **{name: value for name, value in info.identity().items() if name != "name"},
        "dtype": runtime.image_dtype,
        "text_dtype": runtime.text_dtype,
        "device": runtime.device.partition(":")[0],
        "parity": "upstream" if parity == "reference" else parity,  # the old word, so that keys stay
    }
    return EncoderRecord(
        label=label or info.name,
        name=info.name,
        family=info.family,
        repository=repository,
        dim=info.dim,
        image_size=info.image_size,
        max_text_tokens=info.max_text_tokens,
        weights_sha256=info.weights_sha256,
        settings_sha256=info.settings_sha256,
        preprocessing=info.preprocessing,
        parameters=info.parameters,
        languages=tuple(info.languages),
        licence=info.licence,
        dtype=runtime.image_dtype,
        text_dtype=runtime.text_dtype,
        device=runtime.device,
        parity=parity,
        key=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest(),
        published=published,
    )


def _published(info: EncoderInfo) -> tuple[str, str]:
    """The hub's name of a published encoder, empty for one known to be another; and how far that was checked."""
    from llm2clip.encoders.catalog.entries import check_name, find_encoder

    row = find_encoder(info.name)
    state = check_name(info).state
    return "" if row is None or state == "other" else row.repository, state


def store_key(record: EncoderRecord) -> str:
    """Folder of an encoder's cached vectors; another release of this package may compute them differently."""
    return f"{record.key[:32]}-{code_version()}"


def code_version() -> str:
    """Version of this package."""
    return package_version() or "unknown"


def libraries() -> tuple[tuple[str, str], ...]:
    """(name, version) of what computes."""
    return tuple((name, found) for name in _LIBRARIES if (found := package_version(name)))


def machine() -> str:
    """Processor and system, in words."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


class Level(Enum):
    """How much is known of a data set in an encoder's training."""

    TRAINED_ON = "trained-on"
    """Test items, or their captions in some form, were in training: not a zero-shot number."""
    SAME_SOURCE = "same-source"
    """Images or captions of the same source were in training."""
    NONE_KNOWN = "none-known"
    """Nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What is known of one encoder and one data set."""

    level: Level
    why: str = ""
    source: str = ""


NOTHING_KNOWN = Overlap(level=Level.NONE_KNOWN)
_UNTRAINED = "random-"
"""Begins the names of encoders with random weights."""


def known_overlap(names: Sequence[str], protocol: str) -> Overlap:
    """Look an encoder and a data set up in ``eval/data/overlap.toml``."""
    for name in map(str.lower, filter(None, names)):
        for entry in () if name.startswith(_UNTRAINED) else _overlaps():
            sets = any(protocol.lower().startswith(one) for one in entry["sets"])
            if sets and any(fnmatchcase(name, pattern) for pattern in entry["encoders"]):
                return Overlap(level=Level(entry["level"]), why=entry["why"], source=entry["source"])
    return NOTHING_KNOWN


@cache
def _overlaps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(_OVERLAPS.read_text(encoding="utf-8"))["overlap"]
    return found
