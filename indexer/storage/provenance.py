"""What a generation is written from: its origin, and images as rows of the items file."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm2clip.common.files import file_sha256
from llm2clip.common.versions import DISTRIBUTION, package_version
from llm2clip.indexer.storage.items_reader import ErrorRow, ItemRow
from llm2clip.indexer.storage.manifest import FileRecord, Manifest
from llm2clip.indexer.storage.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class BuildInfo:
    """What an index is made from and with."""

    corpus: Mapping[str, str]
    """Identity of the corpus."""
    encoder: Mapping[str, str | int]
    """Identity of the encoder."""
    encoder_source: str
    """What ``load_encoder`` loads it from."""
    anew: bool
    """Whether the index that was there before is not to be trusted."""


def empty_manifest(
    origin: BuildInfo, *, generation: int, items_file: str, index_id: str | None = None
) -> Manifest:
    """The manifest of an index without any image, which was never written."""
    return Manifest(
        index_id=index_id or uuid.uuid4().hex,
        generation=generation,
        created="",
        written_by=software(),
        sources=(dict(origin.corpus),),
        encoder=dict(origin.encoder),
        encoder_source=origin.encoder_source,
        rows=0,
        items=0,
        bad=0,
        items_file=items_file,
        items_bytes=0,
        items_checksum=f"{0:016x}",
        segments=(),
        ann=None,
        files={},
    )


def item_row(id: int, outcome: Outcome, *, source: int) -> ItemRow:
    """The row of an image that has a vector."""
    record = outcome.record
    return ItemRow(
        id=id,
        source=source,
        key=record.key,
        path=record.path,
        locator=record.locator,
        size=record.size or 0,
        mtime_ns=record.mtime_ns or 0,
        sidecars=record.sidecars,
        hash=outcome.hash,
        width=outcome.width,
        height=outcome.height,
        caption=record.caption,
        metadata=json.dumps(record.metadata, ensure_ascii=False) if record.metadata else None,
    )


def errors_of(outcome: Outcome, source: int) -> list[ErrorRow]:
    """What was wrong with an image, or with what lies beside it."""
    record = outcome.record
    if outcome.reason is not None:
        return [ErrorRow(source, record.key, outcome.stage, outcome.reason, record.size, record.mtime_ns)]
    if record.note is not None:
        return [ErrorRow(source, record.key, "sidecar", record.note, record.size, record.mtime_ns)]
    return []


def remedy(error: OSError) -> str:
    """What to do about a failure to write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error)  # SQLite gives no number
    if full:
        return "make room and run the same command again"
    return "put that right and run the same command again"


def file_record(path: Path) -> FileRecord:
    """Size and checksum of a file."""
    return FileRecord(bytes=os.path.getsize(path), sha256=file_sha256(path))


def software() -> str:
    """Name and version of what writes."""
    return f"{DISTRIBUTION} {package_version() or ''}".rstrip()
