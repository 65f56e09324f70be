"""Rows of CSV, TSV, JSON-lines and plain lists of paths."""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, TypeGuard

from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.records.files import ending

LISTS = frozenset([".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".lst"])
"""Endings of lists of images."""

_PATHS = (
    "file_name filename filepath file_path image_path image_name path file image img picture photo image_url "
    "url uri"
)
PATH_COLUMNS = (*_PATHS.split(), "文件名", "文件路径", "路径", "图片")
"""Names of the column of paths, in order of preference; case does not matter."""
CAPTION_COLUMNS = ("caption", "text", "captions", "comment", "title", "描述", "说明", "标题")
"""Names of the column of captions, likewise."""
MAX_LINE = 2**20
"""Characters in a line; of longer ones only the beginning is read."""
_OTHER = re.compile(r"[^\x00-\x7f]")
_WRONG = re.compile("[\udc80-\udcff]")
_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_LONG = re.compile(r"\d{19}")
_NOTED = re.compile(r"\s*\([^()]*\)$")
_MARKS = ",;\t|"
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
    """Encoding of a list: UTF-8, UTF-16, or else GB 18030.

    A list that is UTF-8 but for a few bytes counts as UTF-8: only the lines with those bytes are damaged.
    """
    with open(file, "rb") as stream:
        start = stream.read(512)
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        for order, zeros in (("le", start[1::2]), ("be", start[0::2])):
            if len(zeros) > 1 and zeros.count(0) > len(zeros) // 2:  # no mark, but mostly ASCII
                return f"utf-16-{order}"
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
    with _opened(file, encoding) as stream:
        if kind in (".csv", ".tsv") or _has_header(stream):
            found = file.stat()
            types = _types(file, encoding, found.st_size, found.st_mtime_ns)
            yield from _table(stream, file, types)
        elif kind in (".jsonl", ".ndjson"):
            found = file.stat()
            yield from _objects(
                _lines(stream), _long_fields(file, encoding, found.st_size, found.st_mtime_ns)
            )
        else:
            for number, line in enumerate(_lines(stream), 1):
                if line.strip():
                    yield Row(number, line.rstrip("\r\n"))


def _lines(stream: TextIO) -> Iterator[str]:
    """The lines of a file; of those longer than any row the beginning, which then is no usable row."""
    while line := stream.readline(MAX_LINE):
        yield line
        while len(line) == MAX_LINE and not line.endswith("\n"):
            line = stream.readline(MAX_LINE)


def _opened(file: Path, encoding: str) -> TextIO:
    errors = "replace" if encoding.startswith("utf-16") else "surrogateescape"
    newline = "\n" if ending(file.name) in (".jsonl", ".ndjson") else ""
    return open(file, encoding=encoding, errors=errors, newline=newline)


def _has_header(stream: TextIO) -> bool:
    """Whether a list of paths begins with the header of a table, as Flickr8k's captions.txt does."""
    names = _cells(stream.readline(MAX_LINE))
    stream.seek(0)
    return len(names) > 1 and None not in (column_of(names, PATH_COLUMNS), column_of(names, CAPTION_COLUMNS))


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=max(_MARKS, key=line.count), skipinitialspace=True), [])
    except csv.Error:
        return []


class _Header(NamedTuple):
    """The header of a table, and the rows after it."""

    names: list[str]
    """Without the unnamed columns at its end."""
    cells: Iterator[tuple[int, list[str] | csv.Error]]
    """Line and cells of each row, or why it cannot be read."""


def _header(stream: TextIO, file: Path) -> _Header:
    first, skipped = stream.readline(MAX_LINE), 0
    said = re.fullmatch(r"sep=(.)\s*", first)  # written by Excel
    if said:
        first, skipped = stream.readline(MAX_LINE), 1
    if len(first) >= MAX_LINE:
        raise CorpusError(f"the first line of {file} has more than {MAX_LINE:,} characters: is it a list?")
    tab = "\t" if ending(file.name) == ".tsv" else max(_MARKS, key=first.count)
    reader = csv.reader(
        chain([first], _lines(stream)), delimiter=said[1] if said else tab, skipinitialspace=True
    )

    def rest() -> Iterator[tuple[int, list[str] | csv.Error]]:
        while True:
            line = reader.line_num + 1 + skipped
            try:
                yield line, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, error

    rows = rest()
    names = next(rows, (1, []))[1]
    if isinstance(names, csv.Error):
        raise CorpusError(f"the header of {file} cannot be read: {names}")
    while names and not names[-1].strip():
        names.pop()
    return _Header([" ".join(name.split()) for name in names], rows)


def _fitted(cells: list[str], columns: int) -> list[str] | None:
    """The cells of a row, without empty ones after the last column; None if there are too few or too many."""
    extra = cells[columns:]
    return cells[:columns] if len(cells) >= columns and not any(map(str.strip, extra)) else None


@lru_cache(maxsize=4)
def _types(file: Path, encoding: str, _size: int, _mtime_ns: int) -> tuple[Callable[[str], Any], ...]:
    """What reads the cells of each column: as numbers if all of them are, so that filters can compare them.

    A column with 007, 1e5 or an integer of more than 64 bits is text.
    """
    with _opened(file, encoding) as stream:
        header = _header(stream, file)
        types: list[Callable[[str], Any]] = [int for _ in header.names]
        for _, found in header.cells:
            cells = None if isinstance(found, csv.Error) else _fitted(found, len(types))
            for place, cell in enumerate(cells or ()):
                if cell and types[place] is not str:
                    types[place] = _type(cell, types[place])
    return tuple(_number if each is float else each for each in types)


def _type(cell: str, before: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of a column, ``before`` and with one more cell: ``int``, ``float`` or ``str``."""
    if _INT.fullmatch(cell) and -(2**63) <= int(cell) < 2**63:
        return before
    return float if _FLOAT.fullmatch(cell) else str


def _number(cell: str) -> int | float:
    return int(cell) if _INT.fullmatch(cell) else float(cell)


def _table(stream: TextIO, file: Path, types: Sequence[Callable[[str], Any]]) -> Iterator[Row]:
    header = _header(stream, file)
    columns = _columns(header.names, file)
    for number, found in header.cells:
        if isinstance(found, csv.Error):
            yield Row(number, "", problem=f"cannot be read: {found}")
            continue
        cells = _fitted(found, len(header.names))
        if cells is not None:
            named = zip(header.names, cells, types, strict=True)
            values = {name: cell if name in columns else read(cell) for name, cell, read in named if cell}
            yield _row(number, values, columns)
        elif found:
            problem = f"got {len(found)} columns, expected the {len(header.names)} of the header"
            yield Row(number, "", problem=problem)


@lru_cache(maxsize=4)
def _long_fields(file: Path, encoding: str, _size: int, _mtime_ns: int) -> frozenset[str]:
    """Fields of JSON lines with an integer of more than 64 bits in some line: all their integers are kept as text."""
    found = set[str]()
    with _opened(file, encoding) as stream:
        for line in _lines(stream):
            if _LONG.search(line):  # few lines have so many digits, and only those are parsed
                with suppress(ValueError, RecursionError):
                    parsed = json.loads(line)
                    cells = parsed.items() if isinstance(parsed, dict) else ()
                    found.update(
                        name for name, cell in cells if _is_integer(cell) and not -(2**63) <= cell < 2**63
                    )
    return frozenset(found)


def _is_integer(cell: object) -> TypeGuard[int]:
    return isinstance(cell, int) and not isinstance(cell, bool)


def _objects(stream: Iterator[str], long: frozenset[str]) -> Iterator[Row]:
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
        if long:
            parsed = {
                name: str(cell) if name in long and _is_integer(cell) else cell
                for name, cell in parsed.items()
            }
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
    if not isinstance(where, str | int | float) or str(where).strip() in ("", "nan"):
        return Row(number, "", problem="names no image")
    rest = {name: value for name, value in cells.items() if name != columns[0]}
    caption, rest = split_caption(rest, columns[1])
    return Row(number, str(where).strip(), caption, rest or None)


Rows = Callable[[], Iterator[Row]]
"""Reads a list from its beginning."""


def column_of(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted names that exists, as written there; ``caption (English)`` counts as ``caption``."""
    written = {_NOTED.sub("", name.strip().lower()): name for name in reversed(names)}
    written |= {name.strip().lower(): name for name in reversed(names)}
    return next((written[name] for name in wanted if name in written), None)


def split_caption(cells: dict[str, Any], column: str | None) -> tuple[str | None, dict[str, Any]]:
    """The caption and the other cells; of a list of captions the first, and the list stays in the others."""
    value = cells.get(column) if column is not None else None
    if isinstance(value, list) and value and isinstance(value[0], str) and value[0].strip():
        return value[0].strip(), cells
    if value is None or isinstance(value, list | dict):
        return None, cells
    if isinstance(value, float) and not math.isfinite(value):
        return None, {name: cell for name, cell in cells.items() if name != column}
    return str(value).strip() or None, {name: cell for name, cell in cells.items() if name != column}
