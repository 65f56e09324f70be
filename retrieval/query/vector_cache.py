"""Vectors of texts that were searched for, on the disk: the same text need not be encoded again by a later command."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import data_home, package_version

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

MOST_BYTES = 32 * 10**6
"""Bytes of vectors beyond which the older half is removed."""
_PATIENCE = 0.1
"""Seconds to wait for another process that writes."""
_TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB, sum BLOB, made REAL)"


@final
class VectorCache:
    """Vectors by encoder and text, in a folder that only this user can enter.

    It holds hashes of the texts, not the texts. Whatever is wrong with it, texts are encoded as without it: a folder
    that others can enter or that cannot be written is not used, a damaged vector is not read, a damaged file removed.
    """

    def __init__(self, folder: Path | None = None, *, most_bytes: int = MOST_BYTES) -> None:
        """``folder`` is made if it is not there; ``None``: one in the data folder."""
        self._folder = folder
        self._most_bytes = most_bytes

    def encode(self, texts: Sequence[str], *, encoder: Encoder) -> NDArray[np.float32]:
        """As ``encoder.encode_texts``, which is asked only for the texts that are not here."""
        digest = encoder_digest(encoder)
        keys = [_hash(digest + text.encode("utf-8", "surrogatepass")) for text in texts]
        known = self._read(keys, dim=encoder.info.dim)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            fresh = dict(zip(missing, encoder.encode_texts(list(missing.values())), strict=True))
            self._write(fresh)
            known |= fresh
        return np.stack([known[key] for key in keys]) if keys else encoder.encode_texts([])

    def _read(self, keys: Sequence[bytes], *, dim: int) -> dict[bytes, NDArray[np.float32]]:
        known = {}
        try:
            with closing(self._open()) as file:
                for key in keys:
                    found = file.execute("SELECT vector, sum FROM vectors WHERE key = ?", (key,)).fetchone()
                    if found and len(found[0]) == 4 * dim and _hash(key + found[0]) == found[1]:
                        known[key] = np.frombuffer(found[0], dtype="<f4").astype(np.float32)
        except (OSError, sqlite3.Error, TypeError) as error:
            self._remove_damaged(error)
        return known

    def _write(self, vectors: dict[bytes, NDArray[np.float32]]) -> None:
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        try:
            with closing(self._open()) as file, file:
                made = time.time()
                values = [(key, data, _hash(key + data), made) for key, data in rows]
                file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", values)
                size, count = file.execute("SELECT total(length(vector)), count(*) FROM vectors").fetchone()
                if size > self._most_bytes:
                    older = "SELECT key FROM vectors ORDER BY made, rowid LIMIT ?"
                    file.execute(f"DELETE FROM vectors WHERE key IN ({older})", (count - count // 2,))
        except (OSError, sqlite3.Error) as error:
            self._remove_damaged(error)

    def _place(self) -> Path:
        folder = self._folder or data_home() / "queries"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        mine = not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o077)
        if not stat.S_ISDIR(found.st_mode) or not mine:
            raise PermissionError(f"{folder} is not a folder that only this user can enter")
        return folder / "vectors.db"

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self._place(), timeout=_PATIENCE)
        file.execute("PRAGMA synchronous = OFF")  # what a crash damages is noticed, and encoded again
        file.execute(_TABLE)
        return file

    def _remove_damaged(self, error: Exception) -> None:
        """Remove a file that is no database; one that is busy or cannot be written stays."""
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            for name in ("vectors.db", "vectors.db-journal"):
                self._place().with_name(name).unlink(missing_ok=True)


def encoder_digest(encoder: Encoder, *also: str) -> bytes:
    """Hash of what vectors of texts depend on: the encoder whatever its name, where it computes, our release.

    ``also``: what else goes into it.
    """
    identity = {name: value for name, value in encoder.info.identity().items() if name != "name"}
    runtime = [encoder.runtime.device.partition(":")[0], encoder.runtime.text_dtype]
    return _hash(json.dumps([identity, runtime, package_version(), also], sort_keys=True).encode())


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
