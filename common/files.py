"""Files that are written whole or not at all, their checksums, and sizes for messages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to; its file is flushed to the disk and replaces ``path`` at the end.

    A reader sees the old or the new content, never a part. On an error nothing is left behind.

    Args:
        path: The file to write or replace.
        alone: No other process writes this file now, so that what a killed one left can be overwritten.

    Raises:
        OSError: The file cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp" if alone else f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        yield draft
        sync_file(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Flush a file to the disk.

    Raises:
        OSError: It cannot be: the disk may be full.
    """
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def write_atomic(path: Path, content: str | bytes, *, alone: bool = False) -> None:
    """Write a file at once, text as UTF-8; see :func:`atomic_path`."""
    with atomic_path(path, alone=alone) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that the user named, whole or not at all; creates its folder.

    A link is followed, and what is no regular file, such as ``/dev/stdout``, is written to as it is.

    Raises:
        OSError: The file cannot be written.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        write_atomic(target, content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``folder`` at the end; on an error nothing is left behind.

    Raises:
        OSError: ``folder`` exists and is not empty, or cannot be written.
    """
    import tempfile

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        draft = Path(name, "draft")
        draft.mkdir()
        yield draft
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def format_bytes(size: float) -> str:
    """A size for messages: ``"2.3 GB"``, ``"348 MB"``, ``"7 bytes"``."""
    for unit, bytes_in_unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_in_unit:
            count = size / bytes_in_unit
            return f"{count:,.1f} {unit}" if count < 99.95 else f"{count:,.0f} {unit}"
    return f"{size:,.0f} bytes"
