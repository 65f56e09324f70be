"""``export_index``: vectors and items in files that other software reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llm2clip.common.files import atomic_path, sync_file
from llm2clip.indexer.core.errors import IndexConflictError, IndexerError, IndexWriteError
from llm2clip.indexer.core.index_paths import uri_of
from llm2clip.indexer.search.index import Index, open_index
from llm2clip.indexer.storage.items_reader import ItemRow, shown_metadata
from llm2clip.indexer.storage.vector_segments import Rows

Format = Literal["npy", "parquet"]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What ``export_index`` wrote."""

    path: str
    files: tuple[str, ...]
    items: int
    """Images, as many as rows of vectors."""
    dim: int
    bytes: int


def export_index(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, format: Format = "npy"
) -> ExportReport:
    """Write the vectors and items of an index to a folder.

    ``npy``: ``vectors.npy``, (items, dim) float16, and ``items.jsonl``, one object per row of it. ``parquet``:
    ``items.parquet`` with the vectors in the column ``vector``; needs pyarrow. Creates the folder.
    """
    if format not in ("npy", "parquet"):
        raise IndexerError(f"format {format!r} is not known: expected npy or parquet")
    folder = Path(out).expanduser().absolute()
    names = ("vectors.npy", "items.jsonl") if format == "npy" else ("items.parquet",)
    if folder.exists() and not folder.is_dir():
        raise IndexConflictError(f"{folder} is a file: expected a folder, or the name of a new one")
    with open_index(path) as index:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if taken := [name for name in names if (folder / name).exists()]:
                raise IndexConflictError(f"{folder / taken[0]} already exists: choose another folder")
            try:
                with ExitStack() as drafts:
                    written = [drafts.enter_context(atomic_path(folder / name)) for name in names]
                    (_write_npy if format == "npy" else _write_parquet)(index, *written)
                    for draft in written:  # all of them are on the disk before the first gets its name
                        sync_file(draft)
            except BaseException:
                for name in names:
                    (folder / name).unlink(missing_ok=True)
                raise
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise IndexWriteError(f"cannot write to {folder}: {reason}") from error
        return ExportReport(
            path=str(folder),
            files=names,
            items=len(index),
            dim=index.manifest.dim,
            bytes=sum(os.path.getsize(folder / name) for name in names),
        )


def _blocks(index: Index) -> Iterator[tuple[list[ItemRow], Rows]]:
    for rows in index.items.each():
        yield rows, index.vectors.take(np.array([row.id for row in rows]))


def _described(index: Index, row: ItemRow) -> dict[str, Any]:
    source: Mapping[str, str] = index.manifest.sources[row.source]
    metadata, time, time_source = shown_metadata(row.metadata, mtime_ns=row.mtime_ns)
    return {
        "id": row.id,
        "key": row.key,
        "uri": uri_of(row.key, corpus=source),
        "caption": row.caption,
        "metadata": metadata,
        "time": time,
        "time_source": time_source,
        "size": row.size,
        "mtime_ns": row.mtime_ns,
        "hash": row.hash.hex(),
        "width": row.width,
        "height": row.height,
    }


def _write_npy(index: Index, vectors_file: Path, items_file: Path) -> None:
    header = {"descr": "<f2", "fortran_order": False, "shape": (len(index), index.manifest.dim)}
    # Not a memory map: where the disk is full, writing to one ends the process without a word.
    with open(vectors_file, "wb") as out, open(items_file, "w", encoding="utf-8") as file:
        np.lib.format.write_array_header_1_0(out, header)
        for rows, vectors in _blocks(index):
            out.write(np.ascontiguousarray(vectors, dtype="<f2").tobytes())
            for row in rows:
                file.write(json.dumps(_described(index, row), ensure_ascii=False) + "\n")


def _write_parquet(index: Index, file: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise IndexerError(
            f"writing Parquet needs pyarrow, which cannot be imported ({error}): pip install pyarrow, or use "
            "--format npy"
        ) from error
    columns = {"id": pa.int64(), "key": pa.string(), "uri": pa.string(), "caption": pa.string()}
    columns |= {"metadata": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64(), "hash": pa.string()}
    columns |= {"time": pa.string(), "time_source": pa.string()}
    columns |= {"width": pa.int32(), "height": pa.int32()}
    vector = pa.list_(pa.float32(), index.manifest.dim)
    schema = pa.schema([*columns.items(), ("vector", vector)])
    with pq.ParquetWriter(file, schema) as writer:
        for rows, vectors in _blocks(index):
            described = [_described(index, row) for row in rows]
            for each in described:
                each["metadata"] = (
                    json.dumps(each["metadata"], ensure_ascii=False) if each["metadata"] else None
                )
            arrays = [pa.array([each[name] for each in described], type) for name, type in columns.items()]
            flat = pa.array(vectors.astype(np.float32).ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, index.manifest.dim))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
