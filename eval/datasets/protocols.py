"""The declared retrieval protocols (``data/protocols.toml``): what each counts, from which files, by which rule."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from llm2clip.eval.datasets.tar_images import DatasetError

_TABLE = Path(__file__).parent.parent / "data" / "protocols.toml"
_T = TypeVar("_T")
COUNTED = ("images", "captions", "pairs")
"""What :class:`Counts` counts."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much a set has, or must have; None: not declared."""

    images: int | None = None
    captions: int | None = None
    pairs: int | None = None
    """Right (caption, image) pairs."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where files come from, and on what terms."""

    publisher: str
    get: str
    licence: str
    archives: Mapping[str, str] = field(default_factory=dict)
    """Published files that one may keep beside what was unpacked, by name: ``algorithm:hex``."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing that must lie in the data folder."""

    sources: tuple[str, ...]
    """Keys of the :class:`Source` it comes from; any one that has one of the forms."""
    paths: tuple[str, ...]
    """Accepted places below the data folder, the preferred first; the images of the same number belong to them.

    ``{language}`` stands for the code as the files spell it.
    """
    what: str
    with_captions: tuple[str, ...] = ()
    """Needed only beside captions at one of these paths; empty: beside any."""
    all_of: bool = False
    """Whether every one of the paths is needed, in this order."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way of measuring on one data set."""

    id: str
    """Its name in results, also in the published table."""
    title: str
    loader: str
    needs: Mapping[str, Need]
    """The files by what they are to the loader: ``captions``, ``images`` and others."""
    counts: Counts
    """What each language has, unless ``by_language`` says otherwise."""
    rule: str
    directions: tuple[str, ...] = ("t2i", "i2t")
    """Directions with published numbers, the main one first."""
    languages: tuple[str, ...] = ()
    """Codes; empty: the protocol has but one language and results do not name it."""
    by_language: Mapping[str, Counts] = field(default_factory=dict)
    """Counts of a language where they differ from the others'."""
    spelling: Mapping[str, str] = field(default_factory=dict)
    """How file names spell a language where they do it otherwise than its code."""
    total_captions: int | None = None
    """Captions of all languages together, where that is what is known."""
    each: int | None = None
    """Captions taken of each image, the first ones; None: all."""
    first: int | None = None
    """Records taken of the annotation file, the first ones; None: all."""
    known_images: tuple[str, ...] = ()
    """Keys of images that are known to be in it: without them it is another split."""
    image_ids_sha256: str | None = None
    """SHA-256 of all image keys, sorted, one a line with a final newline; None: not known."""
    numbered_images: bool = False
    """Whether images are but numbered, so that any folder of as many has the right names."""
    traps: tuple[str, ...] = ()

    def expected(self, language: str | None = None) -> Counts:
        """The counts for one language."""
        return self.by_language.get(language or "", self.counts)

    def difference(self, got: Counts, *, language: str | None = None) -> str:
        """In words, where ``got`` is not what is declared; empty if nowhere."""
        expected = self.expected(language)
        return "; ".join(
            f"got {_number(having)} {name}, expected {wanted:,}"
            for name in COUNTED
            if (wanted := getattr(expected, name)) is not None and (having := getattr(got, name)) != wanted
        )


def _number(value: int | None) -> str:
    return "no number of" if value is None else f"{value:,}"


def protocol_ids() -> tuple[str, ...]:
    """Every declared id, in the order of the table."""
    return tuple(_tables()[1])


def declared(name: str) -> Protocol | None:
    """The protocol of this id; None if there is none."""
    return _tables()[1].get(name)


def find_protocol(name: str) -> Protocol:
    """The protocol of this id.

    Raises:
        DatasetError: If there is none; the message names those that come near.
    """
    if (protocol := declared(name)) is not None:
        return protocol
    near = difflib.get_close_matches(name, protocol_ids(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of: {', '.join(protocol_ids())}"
    raise DatasetError(f"unknown protocol '{name}'; {hint}")


def source(key: str) -> Source:
    """The source that a :class:`Need` names."""
    return _tables()[0][key]


@cache
def _tables() -> tuple[dict[str, Source], dict[str, Protocol]]:
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    sources = {key: _make(Source, entry, where=f"source {key}") for key, entry in table["sources"].items()}
    protocols = {key: _protocol(key, entry) for key, entry in table["protocols"].items()}
    for protocol in protocols.values():
        for need in protocol.needs.values():
            if unknown := set(need.sources) - set(sources):
                raise DatasetError(f"protocol {protocol.id} names unknown sources {sorted(unknown)}")
    return sources, protocols


def _protocol(key: str, entry: dict[str, Any]) -> Protocol:
    where = f"protocol {key}"
    entry = dict(entry, id=key, counts=_make(Counts, entry.get("counts", {}), where=where))
    entry["needs"] = {
        role: _make(Need, need, where=f"{where}, {role}") for role, need in entry["needs"].items()
    }
    entry["by_language"] = {
        language: _make(Counts, counts, where=where)
        for language, counts in entry.get("by_language", {}).items()
    }
    return _make(Protocol, entry, where=where)


def _make(kind: type[_T], entry: dict[str, Any], *, where: str) -> _T:
    """A dataclass from a table entry: lists become tuples, unknown and missing keys are errors."""
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(entry) - set(known)):
        raise DatasetError(f"{where}: unknown keys {unknown}, expected some of {sorted(known)}")
    required = {
        name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING
    }
    if absent := sorted(required - set(entry)):
        raise DatasetError(f"{where}: keys {absent} are missing")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})
