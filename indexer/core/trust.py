"""What the user named on this machine: corpora and encoders that an index may have read or loaded.

An index can come from someone else, and its manifest names folders, URLs and an encoder. They are read, contacted or
loaded only if the user named the same here, or trusts the index.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote

from llm2clip.common.installation import data_home
from llm2clip.indexer.core.errors import IndexerError

_OWN_KINDS = frozenset(["sample"])
_noted: set[str] = set()
"""What this process noted, also where the data home cannot be written."""


def remember(sources: Iterable[Mapping[str, str]] = (), *, encoder: str | None = None) -> None:
    """Note corpora, and the encoder, that the user named."""
    marks = {_mark(source) for source in sources} | ({_mark(encoder)} if encoder is not None else set())
    _noted.update(marks)
    with suppress(OSError):
        if new := sorted(marks - _kept()):
            _file().parent.mkdir(parents=True, exist_ok=True)
            with open(_file(), "a", encoding="ascii") as stream:  # one write: processes may do this at once
                stream.write("".join(f"{mark}\n" for mark in new))


def require_named(source: Mapping[str, str], *, index: Path) -> None:
    """Refuse a corpus that only the index names.

    Raises:
        IndexerError: it was not named on this machine.
    """
    if source["kind"] in _OWN_KINDS or _known(_mark(source)):
        return
    place = source.get("list") or source.get("shards") or source["root"]
    raise IndexerError(
        f"{index} was not built on this machine, and names the images in {place}: to let them be read, run  "
        f"llm2clip-index trust {quote(str(index))}"
    )


def require_named_encoder(name: str, *, index: Path) -> None:
    """Refuse an encoder that only the index names; the catalogue's need not be asked for.

    Raises:
        IndexerError: it was not named on this machine.
    """
    if _known(_mark(name)):
        return
    raise IndexerError(
        f"{index} was not built on this machine, and names the encoder {name!r}: name one with --encoder, or, to let "
        f"that be loaded, run  llm2clip-index trust {quote(str(index))}"
    )


def _known(mark: str) -> bool:
    return mark in _noted or mark in _kept()


def _kept() -> frozenset[str]:
    try:
        return frozenset(_file().read_text("ascii").split())
    except (OSError, ValueError):
        return frozenset()


def _file() -> Path:
    return data_home() / "named.txt"


def _mark(named: Mapping[str, str] | str) -> str:
    """A digest, so that the file tells nothing. Of a corpus all but the user's spelling counts."""
    if isinstance(named, str):
        content: object = ["encoder", os.path.abspath(named) if os.path.isdir(named) else named]
    else:
        content = ["corpus", sorted((name, value) for name, value in named.items() if name != "spec")]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
