"""Published annotation files: text, JSON, JSON lines, large JSON lists; ``DatasetError`` names file and place."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from llm2clip.eval.datasets.tar_images import DatasetError

_T = TypeVar("_T")
_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")


def read_text(path: Path) -> str:
    """A UTF-8 text, of a ``.gz`` the unpacked one."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: no UTF-8 text ({error}), expected the file as published") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}: damaged or cut off ({error}), expected a whole .gz file") from error


def read_lines(path: Path) -> list[str]:
    """The lines without their breaks. Only line feeds count: some captions hold other separators of Unicode."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def read_json(path: Path) -> Any:  # noqa: ANN401
    """The one value of a JSON file."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}: damaged or cut off ({error}), expected whole JSON: get the file again"
        ) from error


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's object with the place to name in messages; blank lines are skipped."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(
                f"{where}: damaged or cut off ({error}), expected one JSON object: get the file again"
            ) from error
        yield where, take(record, dict, where=where)


def json_list(path: Path, *, first: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The first objects of a JSON list, without reading the rest of the file."""
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8-sig") as stream:
        text = stream.read(_CHUNK).lstrip()
        if not text.startswith("["):
            raise DatasetError(f"{path}: begins with {text[:20]!r}, expected a JSON list")
        place = 1
        for number in range(first):
            where = f"{path}, record {number}"
            while True:
                place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
                if text.startswith("]", place):
                    return
                try:
                    record, place = decoder.raw_decode(text, place)
                    break
                except ValueError as error:
                    more = stream.read(_CHUNK)
                    if not more:
                        raise DatasetError(
                            f"{where}: damaged or cut off ({error}), expected a whole list: get the file again"
                        ) from error
                    text, place = text[place:] + more, 0
            yield where, take(record, dict, where=where)


def take(value: object, kind: type[_T], *, where: str) -> _T:
    """The value if it is of this kind."""
    if not isinstance(value, kind):
        raise DatasetError(f"{where}: got {type(value).__name__}, expected {kind.__name__}")
    return value


def entry(record: dict[str, Any], *names: str, kind: type[_T], where: str) -> _T:
    """The value under the first of these names that the record has."""
    for name in names:
        if name in record:
            return take(record[name], kind, where=f"{where}, '{name}'")
    raise DatasetError(f"{where}: has {sorted(record)}, expected '{names[0]}'")
