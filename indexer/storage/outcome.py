"""The outcome of reading one image: a vector, or the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.records.record import Record
from llm2clip.indexer.records.values import with_embedded
from llm2clip.indexer.storage.items_reader import ErrorRow, ItemRow
from llm2clip.indexer.storage.vector_segments import Rows


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What reading, decoding and encoding a record gave."""

    record: Record
    pixels: NDArray[np.uint8] | None = None
    """Decoded and waiting for the encoder. Shape: (size, size, 3)."""
    vector: Rows | None = None
    """Its vector. Shape: (dim,), float16."""
    kept: bool = False
    """Whether the vector, or the failure, is reused."""
    id: int | None = None
    """The id that it keeps; None: a new one."""
    hash: bytes = b""
    width: int = 0
    """As shown, in pixels."""
    height: int = 0
    """As shown, in pixels."""
    stage: str = ""
    """Where it failed: list, read, decode, encode."""
    reason: str | None = None
    """Why it failed; None if it did not."""

    def item_row(self, id: int, source: int) -> ItemRow:
        """The row of an image that has a vector."""
        record = self.record
        return ItemRow(
            id=id,
            source=source,
            key=record.key,
            path=record.path,
            locator=record.locator,
            size=record.size or 0,
            mtime_ns=record.mtime_ns or 0,
            sidecars=record.sidecars,
            hash=self.hash,
            width=self.width,
            height=self.height,
            caption=record.caption,
            metadata=json.dumps(record.metadata, ensure_ascii=False) if record.metadata else None,
        )

    def error_rows(self, source: int) -> list[ErrorRow]:
        """What was wrong with the image, or with its sidecars."""
        record = self.record
        if self.reason is not None:
            return [ErrorRow(source, record.key, self.stage, self.reason, record.size, record.mtime_ns)]
        if record.note is not None:
            return [ErrorRow(source, record.key, "sidecar", record.note, record.size, record.mtime_ns)]
        return []


def reason_of(error: Exception) -> str:
    """Why something failed, on one line of bounded length."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


@dataclass(frozen=True, kw_only=True)
class ReusedVector:
    """The vector of an image that was embedded before."""

    vector: Rows
    """Shape: (dim,), float16."""
    hash: bytes
    width: int
    """As shown, in pixels."""
    height: int
    """As shown, in pixels."""
    id: int | None = None
    """The id that the image keeps; None: the vector is copied to a new one."""
    told: Mapping[str, Any] | None = None
    """What its file says of itself, if that is known without reading it."""
    unread: bool = False
    """Whether its file has to be read for what it says of itself."""

    def outcome(self, record: Record) -> Outcome:
        """The outcome of a record that gets this vector."""
        if self.told:
            record = replace(record, metadata=with_embedded(record.metadata, self.told))
        found = Outcome(record=record, kept=True, vector=self.vector, id=self.id, hash=self.hash)
        found.width, found.height = self.width, self.height
        return found
