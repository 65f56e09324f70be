"""Images in Parquet and Arrow files: as in Hugging Face data sets, or as plain bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, final

from llm2clip.indexer.containers.arrow_columns import Columns, columns_of, long_columns, plain_values
from llm2clip.indexer.containers.arrow_files import Group, Table, open_table, shared_table
from llm2clip.indexer.containers.container import Container, ContainerCorpus, Files
from llm2clip.indexer.containers.read_ahead import ReadAheadGroup
from llm2clip.indexer.core.errors import CorpusError, require_extra
from llm2clip.indexer.records.files import MAX_IMAGE_BYTES, read_whole
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.records.sidecars import MAX_SIDECAR_BYTES, Sidecar
from llm2clip.indexer.records.tabular import split_caption

TABLES = frozenset([".parquet", ".arrow", ".feather"])
"""Endings of tables that may hold images."""


@final
class TableCorpus(ContainerCorpus):
    """Images of Parquet or Arrow files; the key of each is ``train.parquet#17``, its row from 0.

    If rows hold several images, the key ends in the column: ``#17.left``. Other columns are caption and metadata.
    """

    kind: Final = "table"  # type: ignore[misc]
    what: Final = "table"  # type: ignore[misc]

    def __init__(self, spec: str, files: Files | None = None) -> None:
        super().__init__(spec, files or Files.found(spec, endings=TABLES, deep=True))
        require_extra("pyarrow", extra="parquet", what="reading Parquet and Arrow files")

    def _names(self, container: Container) -> Iterator[str]:
        return (f"a column {name}" for name in open_table(container.file).schema.names)

    def _inside(self, container: Container) -> Iterator[Record]:
        changed = container.file.stat().st_mtime_ns
        table = shared_table(container.file)
        columns = columns_of(table.schema)
        if not columns.images:
            raise CorpusError(
                f"no column holds images: got {', '.join(table.schema.names)}; expected one of bytes, or of structs "
                "{bytes, path} as in data sets of Hugging Face"
            )
        columns = columns._replace(texts=long_columns(table, columns))
        for group in table.groups(columns.images[0]):
            sidecars = _Sidecars(table, columns, group)
            chunks: dict[str, ReadAheadGroup] = {}
            for number in range(group.rows):
                row, place = group.first + number, number % group.at_once
                if not place:
                    chunks = {name: _chunk(container.file, group, name, number) for name in columns.images}
                for name in columns.images:
                    within = f"{row}.{name}" if len(columns.images) > 1 else str(row)
                    yield Record(
                        key=f"{container.path}#{within}",
                        uri=f"{container.uri}#{within}",
                        file=container.file,
                        path=container.path,
                        size=0,
                        mtime_ns=changed,
                        inner={"row": row, "column": name},
                        fetch=partial(chunks[name].take, place),
                        describe=partial(sidecars.of, number),
                    )
        if table.damage is not None:
            raise table.damage


class _Sidecars:
    """Captions and metadata of a group, read row by row on demand."""

    def __init__(self, table: Table, columns: Columns, group: Group) -> None:
        self._rows = _sidecars(table, columns, group)
        self._number, self._last = -1, Sidecar()

    def of(self, number: int) -> Sidecar:
        """Those of a row of the group, from 0; rows have to be requested in order."""
        while self._number < number:
            self._last = next(self._rows, Sidecar())
            self._number += 1
        return self._last


def _sidecars(table: Table, columns: Columns, group: Group) -> Iterator[Sidecar]:
    """Caption and metadata of each row of a group; notes instead if they are damaged."""
    import pyarrow as pa

    wanted = [*columns.others, *(f"{name}.path" for name in columns.images if name in columns.named)]
    if not wanted:
        return
    try:
        for row in table.rows(group, columns=wanted):
            yield _sidecar(row, columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        while True:
            yield Sidecar(note=f"caption and metadata left out, as they are damaged: {error}")


def _sidecar(row: dict[str, Any], columns: Columns) -> Sidecar:
    cells = {name: row.get(name) for name in columns.others}
    for name in columns.images:
        path = (row.get(name) or {}).get("path") if name in columns.named else None
        label = "file_name" if len(columns.images) == 1 else f"{name}.file_name"
        if path and label not in cells:
            cells[label] = path
    caption, rest = split_caption(plain_values(cells, columns=columns), columns.caption)
    if len(json.dumps(rest)) > MAX_SIDECAR_BYTES:
        return Sidecar(caption=caption, note=f"metadata left out: more than {MAX_SIDECAR_BYTES:,} bytes")
    return Sidecar(caption=caption, metadata=rest or None)


def _chunk(file: Path, group: Group, column: str, start: int) -> ReadAheadGroup:
    return ReadAheadGroup(
        partial(_load, file, group, column, start), one=partial(_one, file, group.first + start, column)
    )


def _load(file: Path, group: Group, column: str, start: int) -> list[bytes | Exception]:
    import pyarrow as pa

    count = min(group.at_once, group.rows - start)
    try:
        cells = shared_table(file).cells(group, column, start=start, count=count)
        return [_image(cell, file) for cell in cells]
    except (OSError, pa.ArrowException) as error:
        problem = CorpusError(f"row group {group.number} is damaged: {' '.join(str(error).split())[:200]}")
        return [problem] * count


def _one(file: Path, first: int, column: str, number: int) -> bytes:
    return read_row(file, row=first + number, column=column)


def _image(cell: object, file: Path) -> bytes | Exception:
    """The image of a cell: its bytes, or the file beside the table that it names."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(content, bytes):
        if len(content) <= MAX_IMAGE_BYTES:
            return content
        return CorpusError(f"{len(content):,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}")
    path = cell.get("path") if isinstance(cell, dict) else None
    if not isinstance(path, str) or not path:
        return CorpusError("the row has no image")
    if os.path.isabs(path) or os.path.splitdrive(path)[0] or ".." in path.replace("\\", "/").split("/"):
        return CorpusError(f"the row names a file outside the folder of its table: {path}")
    try:
        return read_whole(file.parent / path)
    except (OSError, ValueError) as error:
        return CorpusError(f"{path}: {getattr(error, 'strerror', None) or error}")


def read_row(file: Path, *, row: int, column: str) -> bytes:
    """The image of one row, from 0, of a Parquet or Arrow file."""
    require_extra("pyarrow", extra="parquet", what="reading Parquet and Arrow files")
    import pyarrow as pa

    try:
        content = _image(open_table(file).cell(row, column), file)
    except pa.ArrowException as error:
        raise CorpusError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error
    if isinstance(content, Exception):
        raise content
    return content
