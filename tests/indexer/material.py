"""Images, tars and rows for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

import numpy as np
from PIL import Image

from llm2clip.indexer import Index


def encoded(colour: tuple[int, int, int], *, size: tuple[int, int] = (12, 8), format: str = "PNG") -> bytes:
    """An encoded image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """A tar with these members, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour of its own for every number below 16 million."""
    mixed = number * 2654435761 % 2**24
    return mixed & 255, mixed >> 8 & 255, mixed >> 16


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths, float32."""
    scaled: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def content(index: Index) -> dict[tuple[int, str], tuple[object, ...]]:
    """All that an index holds, by source and key, ids apart."""
    found: dict[tuple[int, str], tuple[object, ...]] = {}
    for rows in index.items.each():
        vectors = index.vectors.take(np.array([row.id for row in rows]))
        for row, vector in zip(rows, vectors, strict=True):
            found[row.source, row.key] = (row._replace(id=0), vector.tobytes())
    return found
