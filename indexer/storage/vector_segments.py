"""Vector segments: ``.npy`` files of float16 rows, appended while an index is written and never changed afterwards."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from llm2clip.common.files import create_new, file_sha256, open_regular
from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.core.index_paths import is_name, segment_name
from llm2clip.indexer.storage.manifest import Manifest, Segment

SEGMENT_ROWS = 262_144
"""A segment is closed after this many rows."""
JOINED_ROWS = 65_536
"""Larger files are never copied."""
_REPAIR = "Try  llm2clip-index verify --repair, or run the build command again"

Rows = NDArray[np.float16]


def _header(rows: int, dim: int) -> bytes:
    # NumPy pads the header to one length for every number of rows: it can be rewritten at the end.
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)})
    return buffer.getvalue()


class SegmentWriter:
    """Appends rows to segment files ``vectors-<generation>-<number>.npy``; as a context manager it finishes them."""

    def __init__(
        self, folder: Path, *, generation: int, dim: int, segment_rows: int = SEGMENT_ROWS, begin: int = 0
    ) -> None:
        self._begin = begin
        self._folder, self._generation, self._dim, self._limit = folder, generation, dim, segment_rows
        self._file: BinaryIO | None = None
        self._closed = False
        self.rows: list[int] = []
        """Rows of each file so far."""

    def name(self, number: int) -> str:
        """Name of its file of that number, from 0."""
        return segment_name(self._generation, self._begin + number)

    def append(self, rows: Rows) -> None:
        """Write rows. Shape: (n, dim), float16. A process killed afterwards does not lose them."""
        if self._closed:
            raise ValueError("the segment writer is closed")
        while len(rows):
            if self._file is None or self.rows[-1] == self._limit:
                self._file = self._next()
            part = rows[: self._limit - self.rows[-1]]
            self._write(self._file, np.ascontiguousarray(part, dtype="<f2"))
            self.rows[-1] += len(part)
            rows = rows[len(part) :]

    @staticmethod
    def _write(file: BinaryIO, part: Rows) -> None:
        view, start = part.data.cast("B"), file.tell()
        try:
            # An unbuffered file may write less than it was given, without an error, when the disk is full.
            while view:
                view = view[file.write(view) :]
        except OSError:
            file.truncate(start)  # leaves room on a full disk to commit what came before
            raise

    def _next(self) -> BinaryIO:
        self._finish()
        file = create_new(self._folder / self.name(len(self.rows)))
        self.rows.append(0)
        file.write(_header(0, self._dim))
        return file

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with file:
                file.seek(0)
                file.write(_header(self.rows[-1], self._dim))
                os.fsync(file.fileno())

    def sync(self) -> None:
        """Flush what was appended to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self, *, finish: bool) -> None:
        """Close the last file; ``finish`` also writes how many rows it has, which makes it a whole ``.npy``."""
        self._closed = True
        if finish:
            self._finish()
        elif self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finish=error is None)


def map_segment(path: Path, *, rows: int, dim: int) -> Rows:
    """Map a finished segment into memory, read-only. Shape: (rows, dim), float16."""
    expected = _header(rows, dim)
    try:
        with open_regular(path) as file:
            found = file.read(len(expected))
            if found != expected or os.fstat(file.fileno()).st_size != len(expected) + rows * dim * 2:
                raise IndexDamagedError(
                    f"{path} is damaged: expected {rows} rows of {dim} float16 numbers. {_REPAIR}"
                )
            return _mapped(file, rows, dim, len(expected))
    except FileNotFoundError as error:
        raise IndexDamagedError(f"{path} is missing: the index is incomplete. {_REPAIR}") from error


def open_vectors(folder: Path, segments: Sequence[Segment], *, dim: int) -> Vectors:
    """Map the vectors of an index."""
    return Vectors([map_segment(folder / each.file, rows=each.rows, dim=dim) for each in segments], dim=dim)


def map_appended(folder: Path, name: str, *, dim: int) -> Rows:
    """Map the rows of a segment that may never have been finished. Shape: (as many as it has, dim), float16.

    Raises:
        OSError: the file cannot be read, or is none of an index.
    """
    if not is_name(name, "vectors"):
        raise FileNotFoundError(f"{name} is no file of vectors")
    header = len(_header(0, dim))
    with open_regular(folder / name) as file:
        rows = max(0, os.fstat(file.fileno()).st_size - header) // (dim * 2)
        return _mapped(file, rows, dim, header) if rows else np.empty((0, dim), dtype=np.float16)


def _mapped(file: BinaryIO, rows: int, dim: int, offset: int) -> Rows:
    # As a plain array: small slices of np.memmap cost several times more.
    mapped: Rows = np.memmap(file, dtype="<f2", mode="r", offset=offset, shape=(rows, dim))
    return mapped.view(np.ndarray)


class Vectors:
    """All rows of an index by id, over its mapped segments of consecutive ids. Shapes: (rows, dim), float16."""

    def __init__(self, segments: Sequence[Rows], *, dim: int) -> None:
        self.segments, self.dim = list(segments), dim
        self._starts = np.cumsum([0, *(len(segment) for segment in segments)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, ids: NDArray[np.int64]) -> Rows:
        """The rows of some ids. Shape: (n,), int64, each below ``len(self)`` -> (n, dim), float16."""
        if len(self.segments) == 1:
            return self.segments[0].take(ids, axis=0)
        rows = np.empty((len(ids), self.dim), dtype=np.float16)
        where = np.searchsorted(self._starts, ids, side="right") - 1
        for number in set(where.tolist()):
            chosen = np.flatnonzero(where == number)
            rows[chosen] = self.segments[number][ids[chosen] - self._starts[number]]
        return rows

    def blocks(self, rows: int = 16_384, *, start: int = 0) -> Iterator[tuple[int, Rows]]:
        """All rows from id ``start`` in order, in blocks: (id of the first row, (n, dim) float16)."""
        for first, segment in zip(self._starts.tolist(), self.segments, strict=False):
            for begin in range(max(0, start - first), len(segment), rows):
                yield first + begin, segment[begin : begin + rows]


def join_small(
    folder: Path, base: Manifest, new: Sequence[tuple[str, int]], *, generation: int
) -> tuple[Segment, ...]:
    """The segments of a generation: those of ``base``, then the new ones (file, rows), small ones at the end joined.

    A file is joined with those after it while it is no larger than their sum, as a binary counter carries: n additions
    of one image copy each row about log2(n) times and leave about log2(n) files. A damaged file is not joined, so that
    it is noticed.
    """
    found, rows = list(base.segments), base.rows
    for file, count in new:
        found.append(Segment(file=file, first_id=rows, rows=count))
        rows += count
    start, together = len(base.segments), rows - base.rows
    if not new or together > JOINED_ROWS:
        return tuple(found)
    while start and found[start - 1].rows <= together and found[start - 1].rows + together <= JOINED_ROWS:
        name = found[start - 1].file
        if file_sha256(folder / name, regular=True) != base.files[name].sha256:
            break
        start -= 1
        together += found[start].rows
    if start == len(found) - 1:
        return tuple(found)
    with SegmentWriter(folder, generation=generation, dim=base.dim, begin=len(new)) as writer:
        for segment in found[start:]:
            writer.append(map_segment(folder / segment.file, rows=segment.rows, dim=base.dim))
    joined = Segment(file=writer.name(0), first_id=found[start].first_id, rows=together)
    return (*found[:start], joined)
