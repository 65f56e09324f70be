"""Images decoded once: resized 8-bit pixels in one file, which training maps into memory. An interrupted run resumes.

``pixels.u8`` has the rows (height, width, RGB), ``images.jsonl`` a line per image in order: key, size and time of the
file, and the row or why there is none. Rows that no line counts are cut off when the work resumes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import write_atomic
from llm2clip.encoders.images.preprocess import Preprocess
from llm2clip.indexer.ingest.decode_pipeline import decode_images
from llm2clip.indexer.ingest.encode_batches import AdaptiveBatchSize
from llm2clip.indexer.records.record import Record

_BLOCK = 128
_ROWS, _LINES, _MANIFEST = "pixels.u8", "images.jsonl", "pixels.json"


class PixelCacheError(ValueError):
    """A folder of decoded images cannot be used."""


class PixelCache:
    """Pixels of images by number."""

    def __init__(self, folder: Path, *, size: int, rows: NDArray[np.int64], problems: dict[str, str]) -> None:
        self.size, self.rows, self.problems = size, rows, problems
        """Side in pixels; row of each image, -1 for none; key and reason of those that have none."""
        path = folder / _ROWS
        count = path.stat().st_size // (size * size * 3)
        self._pixels: NDArray[np.uint8] = (
            np.memmap(path, np.uint8, "r", shape=(count, size, size, 3))
            if count
            else np.zeros((0, size, size, 3), np.uint8)
        )

    def take(self, images: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels of images that have a row. Shape: (n, size, size, 3), uint8."""
        rows = self.rows[images]
        assert (rows >= 0).all(), "unreadable images were asked for"
        return np.asarray(self._pixels[rows])


def cache_pixels(
    records: Sequence[Record],
    folder: Path,
    *,
    preprocess: Preprocess,
    workers: int | None = None,
    tell: Callable[[int], None] | None = None,
) -> PixelCache:
    """Decode images into a folder, or continue, or open it if all are there.

    Args:
        records: The images, in a fixed order.
        folder: Where to; made if need be.
        preprocess: How images become squares.
        workers: Threads that decode; ``None``: one per processor.
        tell: Called with the number of images done.

    Raises:
        PixelCacheError: The folder holds other images, or these in another size or order.
        OSError: The disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    what = {"format": 1, "preprocess": preprocess.identifier, "size": preprocess.size}
    _same(folder / _MANIFEST, what)
    done = _resume(folder, records, row_bytes=preprocess.size**2 * 3)
    rows = [line.get("row", -1) for line in done]
    problems = {line["key"]: line["problem"] for line in done if "problem" in line}
    left = records[len(done) :]
    decoded = decode_images(
        left, decode=preprocess.prepare, caches=(), workers=workers, size=AdaptiveBatchSize(32)
    )
    count = sum(row >= 0 for row in rows)
    while block := list(islice(decoded, _BLOCK)):
        lines, pixels = [], []
        for outcome in block:
            line = _line(outcome.record)
            if outcome.pixels is None:
                line["problem"] = problems[outcome.record.key] = outcome.reason or "unreadable"
                rows.append(-1)
            else:
                pixels.append(outcome.pixels)
                line["row"] = count
                rows.append(count)
                count += 1
            lines.append(json.dumps(line, ensure_ascii=False))
        _append(folder / _ROWS, b"".join(np.ascontiguousarray(each).tobytes() for each in pixels))
        _append(folder / _LINES, "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
        if tell is not None:
            tell(len(rows))
    (folder / _ROWS).touch()
    return PixelCache(folder, size=preprocess.size, rows=np.array(rows, np.int64), problems=problems)


def _line(record: Record) -> dict[str, Any]:
    return {"key": record.key, "size": record.size, "mtime_ns": record.mtime_ns}


def _same(path: Path, what: dict[str, Any]) -> None:
    if not path.exists():
        write_atomic(path, json.dumps(what), alone=True)
    if (found := json.loads(path.read_text(encoding="utf-8"))) != what:
        raise PixelCacheError(
            f"{path.parent} holds images as {found.get('preprocess')}, expected {what['preprocess']}; choose another "
            "folder or delete this one"
        )


def _resume(folder: Path, records: Sequence[Record], *, row_bytes: int) -> list[dict[str, Any]]:
    """The lines on disk, with the files cut to what they count."""
    path = folder / _LINES
    done = list(_read(path)) if path.exists() else []
    for line, record in zip(done, records, strict=False):
        if {name: line[name] for name in ("key", "size", "mtime_ns")} != _line(record):
            raise PixelCacheError(
                f"{folder} holds other images: {line['key']!r} there, {record.key!r} here, or it has changed; "
                "delete the folder"
            )
    if len(done) > len(records):
        raise PixelCacheError(f"{folder} holds {len(done):,} images, expected {len(records):,}; delete it")
    count = sum("row" in line for line in done)
    pixels = folder / _ROWS
    size = pixels.stat().st_size if pixels.exists() else 0
    if size < count * row_bytes:
        raise PixelCacheError(f"{pixels} has {size:,} bytes, expected {count * row_bytes:,}; delete {folder}")
    if size > count * row_bytes:
        os.truncate(pixels, count * row_bytes)
    return done


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; a last one that was cut off is removed."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    for line in whole.decode(errors="surrogateescape").splitlines():
        yield json.loads(line)


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
