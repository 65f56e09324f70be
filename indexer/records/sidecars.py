"""Captions and metadata in files beside an image: which are whose, and their text in any encoding."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm2clip.indexer.records.files import RefusedError, ending, image_endings, open_regular

MAX_SIDECAR_BYTES = 2**20
"""Larger caption and metadata files are not read."""
_KINDS = (".json", ".txt")
_TAKEOUT = re.compile(r"(.+?)(\.[A-Za-z0-9]{2,5})(?:\.(s[a-z-]*))?(\(\d+\))?")
_SUPPLEMENT = "supplemental-metadata"
_PAIR = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]")
_HIGH = re.compile(rb"[\x80-\xff]")
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


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

    The caption is ``caption`` or ``text`` of the JSON object (of a list of strings the first), else the text file, of
    several lines the first. The rest of the object is the metadata; several captions are there too, those of a text
    file as ``captions``. What cannot be read is noted.
    """
    rest: dict[str, Any] = {}
    caption = note = None
    if metadata is not None:
        try:
            written = decoded(metadata)
            parsed = json.loads(written)
            if not isinstance(parsed, dict):
                raise ValueError(f"expected an object, got {type(parsed).__name__}")
            if "\\ud" in written.lower():  # half a surrogate pair cannot be stored
                json.dumps(parsed, ensure_ascii=False).encode()
            rest, caption = _split(parsed)
        except (ValueError, RecursionError) as error:
            note = f"metadata left out, not usable JSON: {error}"
    if caption is None and text is not None:
        try:
            lines = [line for each in decoded(text).splitlines() if (line := each.strip())]
            caption = next(iter(lines), None)
            if len(lines) > 1 and "captions" not in rest:
                rest = {**rest, "captions": lines}
        except ValueError as error:
            note = f"caption left out: {error}"
    return Sidecar(caption=caption, metadata=rest or None, note=note)


def _split(parsed: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    # In what Google Takeout writes beside a photo, the user's words are its description.
    theirs = "photoTakenTime" in parsed or ending(str(parsed.get("title"))) in image_endings()
    names = ("caption", "text", "description") if theirs else ("caption", "text")
    for name in names:
        value = parsed.get(name)
        if isinstance(value, str) and value.strip():
            return {key: other for key, other in parsed.items() if key != name}, value.strip()
        if isinstance(value, list) and value and isinstance(value[0], str) and value[0].strip():
            return parsed, value[0].strip()
    return parsed, None


class Beside:
    """The caption and metadata files of a folder or archive, found by the name of an image.

    For ``a.jpg`` these are ``a.txt`` and ``a.json``, else ``a.jpg.txt`` and ``a.jpg.json`` (of Google Takeout also
    ``a.jpg.supplemental-metadata.json`` and the like). Endings may be in upper case, and names be composed or
    decomposed.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._of: dict[str, dict[str, str]] = {}
        self._unused: dict[str, None] = {}
        for name in names:
            kind = name[-5:].lower()
            kind = kind if kind == ".json" else kind[-4:]
            if kind in _KINDS and len(name) > len(kind):
                self._unused[name] = None
                self._put(name[: -len(kind)], kind, name)

    def _put(self, stem: str, kind: str, name: str) -> None:
        known = self._of.setdefault(composed(stem), {})
        if kind not in known or name == f"{stem}{kind}":  # rather a.txt than a.TXT
            known[kind] = name
        if kind == ".json" and (image := _takeout(stem)) is not None:
            self._of.setdefault(composed(image), {}).setdefault(kind, name)

    def __bool__(self) -> bool:
        return bool(self._of)

    def of(self, image: str) -> dict[str, str]:
        """The names of the files of an image, by their kind: ``.json``, ``.txt``."""
        found = dict(self._of.get(composed(image), {}))
        found.update(self._of.get(composed(os.path.splitext(image)[0]), {}))
        for name in found.values():
            self._unused.pop(name, None)
        return found

    @property
    def unused(self) -> list[str]:
        """Names of files that ``of`` has not given for any image."""
        return list(self._unused)


def composed(name: str) -> str:
    """A name in the form that does not depend on who typed it (NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _takeout(stem: str) -> str | None:
    """The image that Google Takeout means: ``a.jpg.supplemental-meta(1)`` -> ``a(1).jpg``; None: some other name."""
    match = _TAKEOUT.fullmatch(stem)
    if match is None or not (match[3] or match[4]) or not _SUPPLEMENT.startswith(match[3] or "s"):
        return None
    return f"{match[1]}{match[4] or ''}{match[2]}"


def sidecar_of(
    folder: Path, image: str, beside: Beside, *, root: Path
) -> tuple[int | None, Callable[[], Sidecar] | None]:
    """The stamp of the caption and metadata files of an image, and what reads them; None and None without any.

    They have to be regular files; links may lead to files in ``folder`` or below ``root``.
    """
    files = {kind: folder / name for kind, name in beside.of(image).items()}
    if not files:
        return None, None
    parts = {kind: partial(_read_small, file, (folder, root)) for kind, file in files.items()}
    try:
        found = [(file.name, file.stat()) for file in files.values()]
    except OSError:
        return None, partial(read_sidecar, parts)
    # Sizes and times of what is no file change all the time.
    stamps = [(name, *((each.st_size, each.st_mtime_ns) if _is_file(each) else ())) for name, each in found]
    return stamp_of(stamps), partial(read_sidecar, parts)


def sidecar_beside(file: Path, *, root: Path) -> tuple[int | None, Callable[[], Sidecar] | None]:
    """As ``sidecar_of``, for one image of a folder that is not listed."""
    stem, name = os.path.splitext(file.name)[0], file.name
    kinds = (*_KINDS, *map(str.upper, _KINDS))
    names = [*(f"{stem}{kind}" for kind in kinds), *(f"{name}{kind}" for kind in _KINDS)]
    found = Beside(each for each in names if os.path.lexists(file.parent / each))
    return sidecar_of(file.parent, name, found, root=root) if found else (None, None)


def _is_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode)


def _read_small(file: Path, within: tuple[Path, ...]) -> bytes:
    """A regular file of limited size; a link only if it leads into one of the folders."""
    if file.is_symlink():
        real = os.path.realpath(file)
        if not any(real.startswith(os.path.join(os.path.realpath(folder), "")) for folder in within):
            raise RefusedError("a link that leads out of the corpus")
    with open_regular(file) as stream:
        return stream.read(MAX_SIDECAR_BYTES + 1)


def read_sidecar(parts: Mapping[str, Callable[[], bytes]]) -> Sidecar:
    """Read and parse ``.json`` and ``.txt``, as far as there are; what is refused is noted."""
    contents: dict[str, bytes] = {}
    notes = []
    for kind, read in parts.items():
        try:
            contents[kind] = limited(read(), None)
        except RefusedError as error:
            notes.append(f"{'caption' if kind == '.txt' else 'metadata'} left out: {error}")
    found = parse_sidecar(contents.get(".json"), contents.get(".txt"))
    note = "; ".join([*notes, *filter(None, [found.note])])
    return Sidecar(caption=found.caption, metadata=found.metadata, note=note or None)


def limited(content: bytes | Callable[[], bytes], size: int | None) -> bytes:
    """The content of a caption or metadata file, or ``RefusedError`` if it, or its known size, is too large."""
    if size is None or size <= MAX_SIDECAR_BYTES:
        content = content if isinstance(content, bytes) else content()
        if len(content) <= MAX_SIDECAR_BYTES:
            return content
    raise RefusedError(f"more than {MAX_SIDECAR_BYTES:,} bytes")


def stamp_of(what: object) -> int:
    """A signed 64-bit hash of names, sizes and times of caption and metadata files, or of their content."""
    digest = hashlib.blake2b(repr(what).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def decoded(content: bytes) -> str:
    """Text that is UTF-8, UTF-16, GB 18030 with common characters, or else Latin-1 as Windows has it.

    Raises:
        ValueError: it is none of these: control characters, or mostly other characters than ASCII.
    """
    for mark, name in _BOMS:
        if content.startswith(mark):
            return content[len(mark) :].decode(name)
    try:
        text = content.decode("utf-8")
        if "\0" not in text:
            return text
    except UnicodeDecodeError:
        if b"\0" not in content:
            return chinese(content) or _latin(content)
    return _wide(content)


def chinese(content: bytes) -> str | None:
    """Text decoded as GB 18030 if most of its byte pairs are common Chinese characters."""
    pairs = _PAIR.findall(content)
    common = sum(0xB0 <= pair[0] <= 0xF7 and pair[1] >= 0xA1 for pair in pairs)
    if 2 * common < len(pairs):
        return None
    try:
        return content.decode("gb18030")
    except UnicodeDecodeError:
        return None


def _latin(content: bytes) -> str:
    if 2 * len(_HIGH.findall(content)) > len(content):
        raise ValueError("neither UTF-8 nor UTF-16 nor GB 18030: save it as UTF-8")
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError as error:
        raise ValueError("neither UTF-8 nor UTF-16 nor GB 18030 nor Latin-1: save it as UTF-8") from error


def _wide(content: bytes) -> str:
    """UTF-16 without a byte-order mark, told by where its NUL bytes are."""
    little, big = content[1::2].count(0), content[::2].count(0)
    text = content.decode("utf-16-le" if little >= big else "utf-16-be")
    if "\0" in text:
        raise ValueError("not text: it holds NUL characters")
    return text
