"""The files of a feature folder: a manifest, rows in .npy files, and the key of each row's caption.

Rows that the manifest does not count are cut off when an interrupted run resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from llm2clip.common.files import file_sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
FORMAT = 1
HEADER = 128
"""Bytes before the rows of a .npy file."""


class FeatureError(ValueError):
    """A feature folder cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run, as in the manifest."""

    rows: int = 0
    """Captions with features on disk."""
    left_out: int = 0
    """Captions that could not be read."""
    reasons: tuple[str, ...] = ()
    """The first of them, and why."""
    key_bytes: int = 0
    """Length of the file of keys that is being written."""
    captions_sha256: str = field(default_factory=lambda: hashlib.sha256().hexdigest())
    """Chained over the blocks: of what was read so far."""
    shards: tuple[dict[str, Any], ...] = ()
    """Files that are finished: ``file``, ``keys``, ``rows`` and ``sha256``."""
    complete: bool = False
    """Whether all captions have been read."""


class CaptionFeatures:
    """A finished feature folder; rows are read from disk on demand."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder; ``FeatureError`` if it is unfinished, or a file is missing or of another length."""
        self.folder = Path(folder)
        saved = read_manifest(self.folder / MANIFEST)
        progress = progress_of(saved)
        if not progress.complete:
            raise FeatureError(
                f"{folder} has features of {progress.rows:,} captions and is not finished; run the same command again"
            )
        self.kind: str = saved["kind"]
        self.made_by: dict[str, Any] = saved["made_by"]
        self.shape: tuple[int, int] = (progress.rows, saved["dim"])
        self._shards = progress.shards
        self._starts = np.cumsum([0, *(shard["rows"] for shard in progress.shards)])
        for shard in self._shards:
            path, size = self.folder / shard["file"], HEADER + shard["rows"] * saved["dim"] * 2
            if not path.is_file() or path.stat().st_size != size:
                raise FeatureError(f"{path} is missing or damaged: expected {size:,} bytes; make it again")

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> NDArray[np.float16]:
        """Features of captions ``start`` to ``stop``. Shape: (stop - start, dim), float16."""
        return np.concatenate(
            [
                np.load(self.folder / shard["file"], mmap_mode="r")[
                    max(0, start - first) : max(0, stop - first)
                ]
                for shard, first in zip(self._shards, self._starts, strict=False)
            ]
            or [np.zeros(self.shape, np.float16)]
        )

    def keys(self) -> Iterator[str]:
        """Key of each caption, in the order of the rows."""
        for shard in self._shards:
            with (self.folder / shard["keys"]).open(encoding="utf-8", newline="\n") as stream:
                yield from (line.removesuffix("\n") for line in stream)

    def verify(self) -> None:
        """Compare every file with its recorded hash; ``FeatureError`` if one differs."""
        for shard in self._shards:
            if file_sha256(self.folder / shard["file"]) != shard["sha256"]:
                raise FeatureError(f"{self.folder / shard['file']} is damaged; make it again")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock while writing to it; ``FeatureError`` if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FeatureError(f"another process writes to {folder}; wait for it") from error
        yield


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest at ``path``; ``FeatureError`` if it cannot be read."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] != FORMAT or not isinstance(saved["progress"], dict):
            raise ValueError(f"format {saved['format']!r}, expected {FORMAT}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FeatureError(f"{path} cannot be read as a manifest of features: {error}") from error
    found: dict[str, Any] = saved
    return found


def progress_of(manifest: dict[str, Any]) -> Progress:
    """The progress recorded in a manifest."""
    values: dict[str, Any] = dict(manifest["progress"])
    for name in ("reasons", "shards"):
        values[name] = tuple(values[name])
    return Progress(**values)


def npy_header(rows: int, dim: int) -> bytes:
    """The header of a .npy file, of fixed length."""
    said = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    start = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
    return start + said.ljust(HEADER - 11).encode() + b"\n"


def append(path: Path, content: bytes, *, at: int) -> None:
    """Write at a position and flush to disk."""
    with path.open("r+b" if path.exists() else "w+b") as stream:
        stream.seek(at)
        stream.write(content)
        to_disk(stream)


def cut(path: Path, size: int, *, counted: bool) -> None:
    """Truncate a file to ``size``; ``FeatureError`` if it is ``counted`` and shorter."""
    there = path.stat().st_size if path.exists() else 0
    if counted and there < size:
        raise FeatureError(
            f"{path} has {there:,} bytes, expected {size:,}; delete {path.parent} and begin again"
        )
    if there > size:
        os.truncate(path, size)


def to_disk(stream: BinaryIO) -> None:
    """Flush a stream to disk."""
    stream.flush()
    os.fsync(stream.fileno())
