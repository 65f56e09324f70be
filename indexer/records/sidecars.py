"""Captions and metadata in files beside an image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

MAX_SIDECAR_BYTES = 2**20
"""Larger caption and metadata files are not read."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Caption and metadata of an image."""

    caption: str | None = None
    metadata: Mapping[str, Any] | None = None
    note: str | None = None
    """Why something was left out."""
    failed: bool = False
    """Whether they could not be read now: the next update tries again."""


def parse_sidecar(metadata: bytes | None, text: bytes | None) -> Sidecar:
    """Caption and metadata from the content of a ``.json`` and a ``.txt`` file.

    The caption is ``caption`` or ``text`` of the JSON object (of a list of strings the first), else the text file.
    The rest of the object is the metadata; a list of captions stays there too. What cannot be read is noted.
    """
    rest: dict[str, Any] = {}
    caption = note = None
    if metadata is not None:
        try:
            parsed = json.loads(metadata.decode("utf-8-sig"))
            if not isinstance(parsed, dict):
                raise ValueError(f"expected an object, got {type(parsed).__name__}")
            if b"\\ud" in metadata.lower():  # half a surrogate pair cannot be stored
                json.dumps(parsed, ensure_ascii=False).encode()
            rest, caption = _split(parsed)
        except (ValueError, RecursionError) as error:
            note = f"metadata left out, not usable JSON: {error}"
    if caption is None and text is not None:
        try:
            caption = text.decode("utf-8-sig").strip() or None
        except UnicodeDecodeError as error:
            note = f"caption left out, not UTF-8: {error}"
    return Sidecar(caption=caption, metadata=rest or None, note=note)


def _split(parsed: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    for name in ("caption", "text"):
        value = parsed.get(name)
        if isinstance(value, str) and value.strip():
            return {key: other for key, other in parsed.items() if key != name}, value.strip()
        if isinstance(value, list) and value and isinstance(value[0], str) and value[0].strip():
            return parsed, value[0].strip()
    return parsed, None


def sidecar_of(
    folder: Path, stem: str, present: frozenset[str]
) -> tuple[int | None, Callable[[], Sidecar] | None]:
    """The stamp of the caption and metadata files of an image, and what reads them; None and None without any."""
    files = [folder / name for kind in (".json", ".txt") if (name := f"{stem}{kind}") in present]
    if not files:
        return None, None
    parts = {file.suffix: partial(file.read_bytes) for file in files}
    try:
        found = [(file.name, file.stat()) for file in files]
    except OSError:
        return None, partial(read_sidecar, parts, 0)
    stamp = stamp_of([(name, each.st_size, each.st_mtime_ns) for name, each in found])
    return stamp, partial(read_sidecar, parts, max(each.st_size for _, each in found))


def read_sidecar(parts: Mapping[str, Callable[[], bytes]], size: int) -> Sidecar:
    """Read and parse ``.json`` and ``.txt``, as far as there are; ``size`` is that of the larger one."""
    if size > MAX_SIDECAR_BYTES:
        return Sidecar(note=f"caption or metadata left out: more than {MAX_SIDECAR_BYTES:,} bytes")
    metadata, text = (parts[kind]() if kind in parts else None for kind in (".json", ".txt"))
    return parse_sidecar(metadata, text)


def stamp_of(what: object) -> int:
    """A signed 64-bit hash of names, sizes and times of caption and metadata files, or of their content."""
    digest = hashlib.blake2b(repr(what).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
