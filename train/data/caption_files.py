"""Groups of captions from files: JSON lines, CSV and TSV, Parquet, WebDataset tars, and plain text.

Everything is streamed. What cannot be used is counted with its reason; a file without captions, or not in the columns
asked for, is an error before training begins.
"""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm2clip.train.data.caption_rows import Columns, caption_fields, group_of
from llm2clip.train.data.captions import CaptionFileError, CaptionGroup, SkipReport

ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar", ".tar.gz", ".tgz", ".txt")
"""Files that are read."""
_MOST_BYTES = 2**24
"""A larger member of a tar or line of a file is no caption."""
_NUMBER = re.compile(r"[-_.]?\d+(-of-\d+)?$")
_LOOK = 100
"""Rows without captions after which a file is refused."""


@dataclass(frozen=True)
class _Row:
    """One row of a file."""

    name: str
    """File and line or member."""
    values: Mapping[str, Any]
    """Fields; empty if there is a problem."""
    problem: str = ""
    """Why it cannot be read."""


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """Files of captions in reading order: as given, those of a folder or of a pattern (``*``) by name.

    Raises:
        CaptionFileError: One is missing or of an unknown kind, or a folder or pattern has none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS))
        elif "*" in path.name:
            found = sorted(path.parent.glob(path.name))
        else:
            found = [path]
        if not found:
            raise CaptionFileError(f"{path} holds no file of captions; expected {', '.join(ENDINGS)}")
        files += found
    for file in files:
        if not file.is_file():
            raise CaptionFileError(f"no such file or folder: {file}")
        if not file.name.endswith(ENDINGS):
            raise CaptionFileError(f"{file} is no file of captions; expected {', '.join(ENDINGS)}")
    return files


def source_of(path: Path) -> str:
    """Name of the data set that a file belongs to: its own without number and ending, or its folder's."""
    name = path.name
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return _NUMBER.sub("", name) or path.resolve().parent.name


def read_groups(
    paths: Sequence[str | Path], *, columns: Columns | None = None, report: SkipReport | None = None
) -> Iterator[CaptionGroup]:
    """The groups of captions in files and folders, one by one.

    Rows of one key that follow each other are one group, as in tables with a row per caption.

    Args:
        paths: Files, folders or patterns.
        columns: Which fields to read; default: found by name.
        report: Counts what is skipped, and why.

    Raises:
        CaptionFileError: A file is missing, cannot be read, or has no captions where they are expected.
    """
    columns, report = columns or Columns(), report or SkipReport()
    for path in find_files(paths):
        for group in _merged(_groups(path, columns, report)):
            report.groups += 1
            report.captions += len(group.captions)
            yield group


def _groups(path: Path, columns: Columns, report: SkipReport) -> Iterator[CaptionGroup]:
    source, found, empty = source_of(path), False, 0
    first: Mapping[str, Any] | None = None
    for row in _rows(path, columns):
        if row.problem:
            report.skip(row.problem, row.name)
            continue
        if first is None and not path.name.endswith(".txt"):
            first = row.values
            if columns.captions:
                caption_fields(first, columns, where=str(path))  # raises where one is misnamed
        group = group_of(row.values, name=row.name, source=source, columns=columns, report=report)
        if group is not None:
            found = True
            yield group
        elif not found and (empty := empty + 1) >= _LOOK:
            break
    if not found and first is not None:
        caption_fields(first, columns, where=str(path))
    if not found:
        raise CaptionFileError(f"{path} holds no caption{_reasons(report)}")


def _reasons(report: SkipReport) -> str:
    return ": " + "; ".join(report.lines()) if report.counts else ""


def _merged(groups: Iterator[CaptionGroup]) -> Iterator[CaptionGroup]:
    """Neighbours of one key as one group."""
    last: CaptionGroup | None = None
    for group in groups:
        if last is not None and last.key == group.key:
            known = {caption.text for caption in last.captions}
            added = tuple(caption for caption in group.captions if caption.text not in known)
            negatives = tuple(dict.fromkeys(last.negatives + group.negatives))
            last = replace(last, captions=last.captions + added, negatives=negatives)
            continue
        if last is not None:
            yield last
        last = group
    if last is not None:
        yield last


def _rows(path: Path, columns: Columns) -> Iterator[_Row]:
    try:
        if path.name.endswith((".csv", ".tsv")):
            yield from _of_csv(path, columns)
        elif path.name.endswith(".parquet"):
            yield from _of_parquet(path, columns)
        elif path.name.endswith((".jsonl", ".ndjson", ".txt")):
            yield from _of_lines(path)
        else:
            yield from _of_tar(path)
    except (OSError, csv.Error, UnicodeError) as error:
        raise CaptionFileError(f"{path} cannot be read: {error}") from error


def _of_lines(path: Path) -> Iterator[_Row]:
    plain = path.name.endswith(".txt")
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_MOST_BYTES), b""), start=1):
            if line.strip():
                yield _decoded(f"{path.name}:{number}", line, plain=plain)


def _decoded(name: str, content: bytes, *, plain: bool) -> _Row:
    if len(content) >= _MOST_BYTES:
        return _Row(name, {}, f"{len(content):,} bytes or more")
    try:
        text = content.decode("utf-8-sig")
        data = {"caption": text} if plain else json.loads(text)
    except UnicodeDecodeError:
        return _Row(name, {}, "not UTF-8")
    except (ValueError, RecursionError):
        return _Row(name, {}, "no JSON")
    return _Row(name, data) if isinstance(data, dict) else _Row(name, {}, "no JSON object")


def _of_csv(path: Path, columns: Columns) -> Iterator[_Row]:
    csv.field_size_limit(_MOST_BYTES)
    with path.open(encoding="utf-8-sig", newline="", errors="strict") as stream:
        table = csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        caption_fields(list(table.fieldnames or []), columns, where=str(path))
        for row in table:
            name = f"{path.name}:{table.line_num}"
            # A row that is too short has None as a value, one that is too long None as a column.
            if None in row or None in row.values():
                yield _Row(name, {}, "another number of cells than the header")
            else:
                yield _Row(name, row)


def _of_parquet(path: Path, columns: Columns) -> Iterator[_Row]:
    from llm2clip.indexer.core.errors import require_extra

    require_extra("pyarrow", extra="parquet", what="reading Parquet files")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            caption_fields(names, columns, where=str(path))
            # Images may lie beside the captions: only what is read here is decoded.
            binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)
            wanted = [
                field.name for field in table.schema_arrow if not any(test(field.type) for test in binary)
            ]
            if "captions" in names and "captions" not in wanted:
                wanted.append("captions")
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=wanted):
                for row in batch.to_pylist():
                    yield _Row(f"{path.name}#{number}", row)
                    number += 1
    except pa.ArrowException as error:
        raise CaptionFileError(f"{path} cannot be read as Parquet: {error}") from error


def _of_tar(path: Path) -> Iterator[_Row]:
    """Samples of a WebDataset: the .json and .txt members of one key, which stand together."""
    key, values = "", dict[str, Any]()
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                stem, _, ending = name.rpartition("/")[2].partition(".")
                if not member.isfile() or ending not in ("json", "txt"):
                    continue
                stem = name.removesuffix(f".{ending}")
                if values and stem != key:
                    yield _Row(f"{path.name}#{key}", values)
                    values = {}
                stream = tar.extractfile(member)
                content = stream.read(_MOST_BYTES) if stream is not None else b""
                row = _decoded(f"{path.name}#{name}", content, plain=ending == "txt")
                if row.problem:
                    yield row
                    continue
                key = stem
                values = _joined(values, row.values) | {"key": stem}
    except (tarfile.TarError, EOFError) as error:
        if values:
            yield _Row(f"{path.name}#{key}", values)
        yield _Row(path.name, {}, f"cut off or damaged behind {key or 'its beginning'} ({error})")
        return
    if values:
        yield _Row(f"{path.name}#{key}", values)
    if path.suffix == ".tar" and not _has_end(path):
        yield _Row(path.name, {}, f"cut off behind {key or 'its beginning'} (no end-of-archive block)")


def _has_end(path: Path) -> bool:
    """Whether the last block of a tar is empty; one that is cut off between two members is read without an error."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 512))
        return not stream.read().strip(b"\0")


def _joined(values: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of two members of one sample; a text beside an object with captions counts too."""
    if "caption" in values and "caption" in more:
        both = [values["caption"], more["caption"]]
        return (
            values
            | dict(more)
            | {"caption": [text for part in both for text in (part if isinstance(part, list) else [part])]}
        )
    return values | dict(more)
