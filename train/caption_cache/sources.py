"""Read captions one by one with stable keys from text files, JSON lines and tar shards."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = ("caption", "text", "captions", "texts")
"""Default entries of a JSON object with its texts: the first of these that it has."""
ENDINGS = (".txt", ".jsonl", ".ndjson", ".tar", ".tar.gz", ".tgz")
"""Files that are read."""
_MAX_BYTES = 2**24
"""A larger member of a tar or line of a file is no caption."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One text."""

    key: str
    """File and line (``a.jsonl:12``) or file and member (``0.tar#7.txt``); behind the third of several texts ``#2``."""
    text: str
    """Empty if there is a problem."""
    problem: str = ""
    """Why it cannot be read."""


class CaptionError(ValueError):
    """A source of captions cannot be read."""


def caption_files(sources: Sequence[str | Path]) -> list[Path]:
    """Files in reading order: as given, those of a folder by name.

    Raises:
        CaptionError: One is missing or of an unknown kind, a folder has none, or two have the same name.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(path for path in source.iterdir() if path.name.endswith(ENDINGS))
            if not found:
                raise CaptionError(f"{source} holds no files with captions ({', '.join(ENDINGS)})")
            files += found
        elif not source.is_file():
            raise CaptionError(f"no such file or folder: {source}")
        elif not source.name.endswith(ENDINGS):
            raise CaptionError(
                f"{source} is not a supported file type; expected {', '.join(ENDINGS)}, or a folder of them"
            )
        else:
            files.append(source)
    names = [path.name for path in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CaptionError(f"files of one name, so captions would be ambiguous: {', '.join(twice)}")
    return files


def read_captions(files: Sequence[Path], *, field: str | None = None) -> Iterator[Caption]:
    """Captions of files from ``caption_files``, in order.

    Each non-blank line of a .txt, each text of a line of JSON, and each .txt and .json member of a tar as a whole.

    Args:
        files: From ``caption_files``.
        field: Entry of a JSON object with the text or a list of texts; default: the first of ``FIELDS``.

    Raises:
        CaptionError: A file cannot be read to its end.
    """
    for path in files:
        try:
            if path.name.endswith(".txt"):
                yield from _lines(path)
            elif path.name.endswith((".jsonl", ".ndjson")):
                for caption in _lines(path):
                    yield from _of_json(caption, field)
            else:
                yield from _members(path, field)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise CaptionError(f"{path} cannot be read to its end: {error}") from error


def _lines(path: Path) -> Iterator[Caption]:
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_MAX_BYTES), b""), start=1):
            if line.strip():
                yield _decoded(f"{path.name}:{number}", line)


def _decoded(key: str, content: bytes) -> Caption:
    if len(content) >= _MAX_BYTES:
        return Caption(key, "", f"{len(content):,} bytes or more")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return Caption(key, "", f"not UTF-8 at byte {error.start}")
    return Caption(key, text, "" if text else "empty")


def _of_json(caption: Caption, field: str | None) -> Iterator[Caption]:
    """The texts of a JSON object, or why there are none."""
    if caption.problem:
        yield caption
        return
    try:
        data = json.loads(caption.text)
    except (ValueError, RecursionError):
        yield Caption(caption.key, "", "no JSON")
        return
    found = _field(data, field)
    texts = found if isinstance(found, list) else [found]
    for number, text in enumerate(texts):
        key = f"{caption.key}#{number}" if isinstance(found, list) else caption.key
        if isinstance(text, str):
            yield _checked(key, text)
        else:
            yield Caption(key, "", f"no text in {field or ' or '.join(FIELDS)}")


def _field(data: Any, field: str | None) -> object:  # noqa: ANN401 - anything that JSON can be
    if not isinstance(data, dict):
        return None
    return data.get(field) if field else next((data[name] for name in FIELDS if name in data), None)


def _checked(key: str, text: str) -> Caption:
    if any("\ud800" <= character <= "\udfff" for character in text):
        return Caption(key, "", "not valid Unicode: a lone surrogate")
    return Caption(key, text.strip(), "" if text.strip() else "empty")


def _members(path: Path, field: str | None) -> Iterator[Caption]:
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if not member.isfile() or not name.endswith((".txt", ".json")):
                continue
            stream = tar.extractfile(member)
            content = stream.read(_MAX_BYTES) if stream is not None else b""
            caption = _decoded(f"{path.name}#{name}", content)
            if name.endswith(".txt"):
                yield caption
            else:
                yield from _of_json(caption, field)
