"""Reads Parquet and Arrow files in groups of rows, in constant memory."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from llm2clip.indexer.core.errors import CorpusError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_BYTES = 32 * 2**20
_CHUNK_ROWS = 256
_ROWS_AT_ONCE = 1000


class Group(NamedTuple):
    """Consecutive rows of a table."""

    number: int
    """Number of the group, from 0."""
    first: int
    """Its first row in the table, from 0."""
    rows: int
    at_once: int
    """Images to read together."""


class Table(ABC):
    """A table on disk. Reading a damaged one raises OSError or pyarrow.ArrowException."""

    schema: pa.Schema
    damage: Exception | None = None
    """Why rows after the last group cannot be read; None if there are none."""

    @abstractmethod
    def groups(self, column: str) -> list[Group]:
        """Its rows, in groups; ``column`` is that of the images."""

    @abstractmethod
    def rows(self, group: Group, *, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of a group, row by row; a field of a struct is named with a dot."""

    @abstractmethod
    def cells(self, group: Group, column: str, *, start: int, count: int) -> list[Any]:
        """Cells of one column, from a row of the group."""

    def cell(self, row: int, column: str) -> Any:  # noqa: ANN401
        """One cell; CorpusError if there is no such row or column."""
        if column in self.schema.names:
            for group in self.groups(column):
                if group.first <= row < group.first + group.rows:
                    for cell in self.cells(group, column, start=row - group.first, count=1):
                        return cell
        raise CorpusError(
            f"the table has no row {row} with a column {column}: it changed since it was indexed"
        )


def shared_table(file: Path) -> Table:
    """The same table for all who read its rows in order: it resumes where reading stopped. A few are kept open."""
    found = file.stat()
    return _shared(file, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4)
def _shared(file: Path, mtime_ns: int, size: int) -> Table:
    return open_table(file)


def open_table(file: Path) -> Table:
    """Open a Parquet or Arrow file, by its first bytes."""
    with open(file, "rb") as stream:
        mark = stream.read(4)
    return ParquetTable(file) if mark == b"PAR1" else ArrowTable(file)


@final
class ParquetTable(Table):
    """A Parquet file; its groups are its row groups."""

    def __init__(self, file: Path) -> None:
        import pyarrow.parquet as pq

        # Pre-buffering would hold the images of a whole row group, which may be the whole file.
        self._file = pq.ParquetFile(file, memory_map=True, pre_buffer=False, page_checksum_verification=True)
        self.schema = self._file.schema_arrow
        self._lock = threading.Lock()
        self._at: tuple[int, str, int] | None = None  # group, column and row that _next gives
        self._next: Iterator[Any] = iter(())

    def groups(self, column: str) -> list[Group]:
        """Its row groups."""
        found, first = [], 0
        for number in range(self._file.metadata.num_row_groups):
            group = self._file.metadata.row_group(number)
            # Of all columns: reading the size of one aborts the process if the file is damaged.
            size = group.total_byte_size
            at_once = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES * group.num_rows // max(1, size)))
            found.append(Group(number, first, group.num_rows, at_once))
            first += group.num_rows
        return found

    def rows(self, group: Group, *, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of a row group."""
        for batch in self._file.iter_batches(
            _ROWS_AT_ONCE, row_groups=[group.number], columns=list(columns), use_threads=False
        ):
            values = {name: _values(batch.column(name)) for name in batch.schema.names}
            yield from (dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))

    def cells(self, group: Group, column: str, *, start: int, count: int) -> list[Any]:
        """Cells of one column; reading continues after the last ones, or begins at the start of the group."""
        with self._lock:
            if self._at != (group.number, column, start):
                self._next = islice(self._cells(group, column), start, None)
            self._at = None  # until these were read
            found = list(islice(self._next, count))
            self._at = (group.number, column, start + count)
        return found

    def _cells(self, group: Group, column: str) -> Iterator[Any]:
        for batch in self._file.iter_batches(
            group.at_once, row_groups=[group.number], columns=[column], use_threads=False
        ):
            for cell in batch.column(0):
                yield cell.as_py()


@final
class ArrowTable(Table):
    """An Arrow file or stream, mapped into memory; its groups are its record batches."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        source = pa.memory_map(str(file))
        with open(file, "rb") as stream:
            is_file = stream.read(6) == b"ARROW1"
        self._batches: list[Any] = []
        if is_file:
            with suppress(pa.ArrowInvalid):  # cut short, its footer is lost: read it as a stream
                reader = pa.ipc.open_file(source)
                self.schema = reader.schema
                for number in range(reader.num_record_batches):
                    self._take(reader.get_batch, number)
                    if self.damage is not None:
                        break
                return
            source.seek(8)
        stream_reader = pa.ipc.open_stream(source)
        self.schema = stream_reader.schema
        while self.damage is None:
            try:
                self._take(stream_reader.read_next_batch)
            except StopIteration:
                break
        if is_file and self.damage is None:
            self.damage = pa.ArrowInvalid("cut short: its footer is lost")

    def _take(self, read: Callable[..., Any], *number: int) -> None:
        import pyarrow as pa

        try:
            batch = read(*number)
            batch.validate(full=True)  # otherwise offsets may point outside of it
            self._batches.append(batch)
        except (pa.ArrowException, OSError) as error:
            self.damage = error

    def groups(self, column: str) -> list[Group]:
        """Its record batches."""
        found, first = [], 0
        for number, batch in enumerate(self._batches):
            found.append(Group(number, first, batch.num_rows, at_once=1))
            first += batch.num_rows
        return found

    def rows(self, group: Group, *, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of a record batch."""
        batch = self._batches[group.number]
        for start in range(0, group.rows, _ROWS_AT_ONCE):
            part = batch.slice(start, _ROWS_AT_ONCE)
            cells = {name: _values(_column(part, name)) for name in columns}
            for number in range(part.num_rows):
                row: dict[str, Any] = {}
                for name, values in cells.items():
                    struct, _, inner = name.partition(".")
                    row[struct if inner else name] = {inner: values[number]} if inner else values[number]
                yield row

    def cells(self, group: Group, column: str, *, start: int, count: int) -> list[Any]:
        """Cells of one column; only their memory pages are read."""
        cells: list[Any] = self._batches[group.number].column(column).slice(start, count).to_pylist()
        return cells


def _values(column: Any) -> list[Any]:  # noqa: ANN401
    """The cells of a column as Python values; as text, or None, where Python has no such value."""
    try:
        cells: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # nanoseconds, the year 0, a year after 9999
        cells = [_cell(each) for each in column]
    return cells


def _cell(cell: Any) -> Any:  # noqa: ANN401
    import pyarrow as pa

    try:
        return cell.as_py()
    except (ValueError, OverflowError):
        try:
            text = str(cell.cast(pa.string()).as_py())
        except pa.ArrowException:
            return None
        return None if text.startswith("<") else text.replace(" ", "T", 1)  # <value out of range: ...>


def _column(batch: Any, name: str) -> Any:  # noqa: ANN401
    if name in batch.schema.names:
        return batch.column(name)
    import pyarrow.compute as pc

    struct, _, inner = name.partition(".")
    return pc.struct_field(batch.column(struct), inner)
