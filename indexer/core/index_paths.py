"""Paths of indexes and of the sample corpus."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from llm2clip.common.files import write_atomic
from llm2clip.common.installation import data_home
from llm2clip.indexer.core.errors import CorpusError

INDEX_VARIABLE = "LLM2CLIP_INDEX"
"""Environment variable that names the index of commands that name none."""
SAMPLE = "sample:"
"""Name of the corpus that ships with the package."""


def default_index_path(corpus: str | os.PathLike[str]) -> Path:
    """Default folder of the index of a corpus: always the same for the same corpus."""
    spec = os.fspath(corpus)
    if spec == SAMPLE:
        return data_home() / "indexes" / "sample.index"
    if spec == "-":
        raise CorpusError("a list on standard input has no default index folder: name one with --index PATH")
    place = spec if "://" in spec else os.path.realpath(os.path.expanduser(spec))
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", os.path.basename(place)).strip("-.") or "images"
    return data_home() / "indexes" / f"{name[:60]}-{digest}.index"


def sample_index_path() -> Path:
    """Default folder of the index of the sample corpus."""
    return default_index_path(SAMPLE)


def sample_folder() -> Path:
    """The folder of the sample corpus inside the installed package."""
    return Path(__file__).parent.parent / "sample"


def sample_shards() -> list[Path]:
    """The tar shards of the sample corpus, in order; empty where the installation has none."""
    return sorted(sample_folder().glob("*.tar"))


def _pointer() -> Path:
    return data_home() / "current.json"


def current_index() -> Path | None:
    """The index last built from the user's own images, whether or not it still exists; None if there was none."""
    try:
        recorded = json.loads(_pointer().read_text("utf-8"))
    except (OSError, ValueError):
        return None
    place = recorded.get("index") if isinstance(recorded, dict) else None
    return Path(place) if isinstance(place, str) else None


def set_current_index(index: str | os.PathLike[str]) -> None:
    """Make ``index`` the one that is searched by default."""
    pointer = _pointer()
    pointer.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(pointer, json.dumps({"index": os.path.abspath(index)}, indent=2) + "\n")
