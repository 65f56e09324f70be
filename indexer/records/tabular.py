"""Rows of CSV, TSV, JSON-lines and plain lists of paths."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.records.files import ending

LISTS = frozenset([".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".lst"])
"""Endings of lists of images."""

_PATHS = (
    "file_name filename filepath file_path image_path path file image img picture photo image_url url uri"
)
PATH_COLUMNS = (*_PATHS.split(), "文件名", "文件路径", "路径", "图片")
"""Names of the column of paths, in order of preference; case does not matter."""
CAPTION_COLUMNS = ("caption", "text", "captions", "描述", "说明", "标题")
"""Names of the column of captions, likewise."""
_OTHER = re.compile(r"[^\x00-\x7f]")
_WRONG = re.compile("[\udc80-\udcff]")
_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,17}")


class Row(NamedTuple):
    """A line of a list."""

    line: int
    """Its number, from 1."""
    path: str
    caption: str | None = None
    metadata: Mapping[str, Any] | None = None
    """The other columns."""
    problem: str | None = None
    """Why it cannot be used; ``path`` is then empty."""


def encoding_of(file: Path) -> str:
    """Encoding of a list: UTF-8, UTF-16 with a byte-order mark, or else GB 18030.

    A list that is UTF-8 but for a few bytes counts as UTF-8: only the lines with those bytes are damaged.
    """
    with open(file, "rb") as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        total = other = wrong = 0
        for text in _decoded(stream, "utf-8", "surrogateescape"):
            total += len(text)
            other += len(text) - len(_OTHER.sub("", text))
            wrong += len(text) - len(_WRONG.sub("", text))
        if wrong * 10 <= other:
            return "utf-8-sig"
        try:
            for _ in _decoded(stream, "gb18030", "strict"):
                pass
        except UnicodeDecodeError as error:
            if wrong * 10 <= total:
                return "utf-8-sig"
            raise CorpusError(f"{file} is neither UTF-8 nor UTF-16 nor GB 18030: save it as UTF-8") from error
        return "gb18030"


def _decoded(stream: BinaryIO, encoding: str, errors: str) -> Iterator[str]:
    stream.seek(0)
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    while block := stream.read(2**20):
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def read_rows(file: Path, *, encoding: str) -> Iterator[Row]:
    """The rows of a list, by its ending."""
    kind = ending(file.name)
    errors = "replace" if encoding == "utf-16" else "surrogateescape"
    with open(
        file, encoding=encoding, errors=errors, newline="" if kind in (".csv", ".tsv") else "\n"
    ) as stream:
        if kind in (".csv", ".tsv"):
            yield from _table(stream, file, tab=kind == ".tsv")
        elif kind in (".jsonl", ".ndjson"):
            yield from _objects(stream, file)
        else:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield Row(number, line.rstrip("\r\n"))


def _table(stream: Iterator[str], file: Path, *, tab: bool) -> Iterator[Row]:
    header = next(stream, "")
    marks = "\t" if tab else max(",;\t|", key=header.count)
    names = next(csv.reader([header], delimiter=marks), [])
    columns = _columns(names, file)
    reader = csv.reader(stream, delimiter=marks)
    while True:
        number = reader.line_num + 2
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(number, "", problem=f"cannot be read: {error}")
            continue
        if not cells:
            continue
        if len(cells) != len(names):
            yield Row(
                number, "", problem=f"got {len(cells)} columns, expected the {len(names)} of the header"
            )
            continue
        yield _row(
            number, {name: _value(cell) for name, cell in zip(names, cells, strict=True) if cell}, columns
        )


def _objects(stream: Iterator[str], file: Path) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            parsed = json.loads(line)
            if not isinstance(parsed, dict):
                raise ValueError(f"expected an object, got {type(parsed).__name__}")
        except (ValueError, RecursionError) as error:
            yield Row(number, "", problem=f"no usable JSON: {error}")
            continue
        columns = _columns(list(parsed), None)
        if columns[0] is None:
            yield Row(number, "", problem=f"no field names the image file: {_expected()}")
        else:
            yield _row(number, parsed, columns)


def _columns(names: Sequence[str], file: Path | None) -> tuple[str | None, str | None]:
    """The columns of the path and of the caption."""
    path, caption = column_of(names, PATH_COLUMNS), column_of(names, CAPTION_COLUMNS)
    if path is None and file is not None:
        got = ", ".join(names)[:200] or "an empty line"
        raise CorpusError(f"no column of {file} names the image files: got {got}; {_expected()}")
    return path, caption


def _expected() -> str:
    return f"expected one of {', '.join(PATH_COLUMNS)}"


def _row(number: int, cells: Mapping[str, Any], columns: tuple[str | None, str | None]) -> Row:
    try:
        json.dumps(cells, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # bytes that are no text, or half a surrogate pair: neither can be stored
        return Row(number, "", problem="is not UTF-8")
    where = cells.get(columns[0] or "")
    if not isinstance(where, str | int | float) or not str(where).strip():
        return Row(number, "", problem="names no image")
    rest = {name: value for name, value in cells.items() if name != columns[0]}
    caption, rest = split_caption(rest, columns[1])
    return Row(number, str(where).strip(), caption, rest or None)


def _value(cell: str) -> str | int | float:
    """Numbers as numbers, so that filters can compare them; 007 and 1e5 stay text."""
    if _INT.fullmatch(cell):
        return int(cell)
    return float(cell) if _FLOAT.fullmatch(cell) else cell


Rows = Callable[[], Iterator[Row]]
"""Reads a list from its beginning."""


def column_of(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted names that exists, as written there."""
    written = {name.strip().lower(): name for name in reversed(names)}
    return next((written[name] for name in wanted if name in written), None)


def split_caption(cells: dict[str, Any], column: str | None) -> tuple[str | None, dict[str, Any]]:
    """The caption and the other cells; of a list of captions the first, and the list stays in the others."""
    value = cells.get(column) if column is not None else None
    if isinstance(value, list) and value and isinstance(value[0], str) and value[0].strip():
        return value[0].strip(), cells
    if value is None or isinstance(value, list | dict):
        return None, cells
    return str(value).strip() or None, {name: cell for name, cell in cells.items() if name != column}
