"""Embed images and texts with vectors cached on disk by content, so that nothing is encoded twice.

A vector belongs to an encoder (its hashes, preprocessing and precision) and to the bytes of an image or the
characters of a text. A file gets its final name when it is complete: an interruption loses seconds of work.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from warnings import catch_warnings, filterwarnings

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import atomic_path
from llm2clip.common.terminal import log_stderr
from llm2clip.encoders.core.errors import TextTooLongWarning
from llm2clip.eval.datasets.tar_images import DatasetError

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

_BATCH = 64
"""Images or texts of one forward pass."""
_WRITE_EVERY = 1024
"""Vectors after which a file is written, ..."""
_WRITE_SECONDS = 20.0
"""... or seconds, whichever comes first."""


class Image(Protocol):
    """An encoded image that is read on demand."""

    @property
    def key(self) -> str:
        """Its name within its set."""

    def read(self) -> bytes:
        """Its bytes."""


@dataclass(kw_only=True)
class Spent:
    """What encoding one tower's inputs took."""

    encoded: int = 0
    """Items that went through the encoder now."""
    remembered: int = 0
    """Items whose vectors were on disk."""
    seconds: float = 0.0
    """Wall clock from the first item that had to be encoded to the last vector."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Images or texts as vectors."""

    vectors: NDArray[np.float32]
    """Shape: (items, dim), float32, unit rows, in the order of the items."""
    digests: tuple[str, ...]
    """SHA-256 of each item's content, hexadecimal."""
    spent: Spent


class EmbeddingCache:
    """Vectors of one encoder in one precision, on disk."""

    def __init__(self, root: Path, *, key: str, dim: int, digests: dict[Image, bytes] | None = None) -> None:
        """Files are read on demand."""
        self.digests: dict[Image, bytes] = {} if digests is None else digests
        self._folder, self._dim = root / key, dim
        self._shelves: dict[str, _Shelf] = {}

    def shelf(self, kind: Literal["images", "texts"]) -> _Shelf:
        """What is known of images or of texts."""
        if kind not in self._shelves:
            self._shelves[kind] = _Shelf(self._folder / kind, dim=self._dim)
        return self._shelves[kind]


class _Shelf:
    """Files of vectors, each with the digests of what they belong to, and vectors that wait to be written."""

    def __init__(self, folder: Path, *, dim: int) -> None:
        self._folder, self._dim = folder, dim
        self._where: dict[bytes, tuple[Path, int]] = {}
        self._waiting: list[tuple[list[bytes], NDArray[np.float32]]] = []
        self._since = time.monotonic()
        for path in sorted(folder.glob("*.npz")):
            digests = self._read(path, "digests")
            self._add(path, [] if digests is None else [row.tobytes() for row in digests])

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._where

    def fill(self, target: NDArray[np.float32], digests: Sequence[bytes]) -> list[int]:
        """Copy the vectors that are known into the rows of ``target``; return the rows that are not."""
        wanted: dict[Path, list[tuple[int, int]]] = {}
        missing = []
        for row, digest in enumerate(digests):
            if found := self._where.get(digest):
                wanted.setdefault(found[0], []).append((row, found[1]))
            else:
                missing.append(row)
        for path, rows in wanted.items():
            vectors = self._read(path, "vectors")
            to, of = np.array(rows).T
            if vectors is None:  # damaged: as if never written
                missing += to.tolist()
                self._where = {digest: at for digest, at in self._where.items() if at[0] != path}
            else:
                target[to] = vectors[of]
        return sorted(missing)

    def put(self, digests: list[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep vectors, and write what has gathered if it is due."""
        self._waiting.append((digests, vectors))
        late = time.monotonic() - self._since > _WRITE_SECONDS
        if late or sum(len(some) for some, _ in self._waiting) >= _WRITE_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered as one file, which is complete or absent."""
        self._since = time.monotonic()
        if not self._waiting:
            return
        digests = [digest for some, _ in self._waiting for digest in some]
        vectors = np.concatenate([some for _, some in self._waiting])
        self._waiting = []
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(b"".join(digests)).hexdigest()[:24]
        path = self._folder / f"{name}.npz"
        with atomic_path(path) as partial, partial.open("wb") as file:
            keys = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
            np.savez(file, digests=keys, vectors=vectors)
        self._add(path, digests)

    def _add(self, path: Path, digests: Sequence[bytes]) -> None:
        self._where.update({digest: (path, row) for row, digest in enumerate(digests)})

    def _read(self, path: Path, name: str) -> NDArray[np.float32] | None:
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                found: NDArray[np.float32] = file[name]
            if found.shape[1:] == ((self._dim if name == "vectors" else 32),):
                return found
            trouble = f"holds {name} of shape {found.shape}"
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            trouble = f"is damaged ({error})"
        log_stderr(f"{path} {trouble}: its vectors are computed again")
        path.unlink(missing_ok=True)
        return None


@dataclass
class _Batch:
    """Images of the next forward pass."""

    rows: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)


def encode_images(
    encoder: Encoder,
    images: Sequence[Image],
    *,
    cache: EmbeddingCache,
    progress: Callable[[int], None] | None = None,
) -> Encoded:
    """Vectors of images: cached ones from disk; the others are read in threads, encoded and written."""
    shelf = cache.shelf("images")
    vectors = np.empty((len(images), encoder.info.dim), dtype=np.float32)
    digests: list[bytes] = []
    began, spent, new = time.monotonic(), Spent(), _Batch()
    try:
        for row, (digest, pixels) in enumerate(_prepared(encoder, images, cache)):
            digests.append(digest)
            if pixels is not None:
                new.rows.append(row)
                new.digests.append(digest)
                new.pixels.append(pixels)
            elif not (new.rows or spent.encoded):
                began = time.monotonic()  # what an earlier run encoded says nothing of speed
            if len(new.rows) == _BATCH or (new.rows and row == len(images) - 1):
                vectors[new.rows] = encoder.encode_prepared(new.pixels)
                shelf.put(new.digests, vectors[new.rows])
                spent.encoded += len(new.rows)
                new = _Batch()
            if progress:
                progress(1)
    finally:
        shelf.flush()
    if lost := shelf.fill(vectors, digests):
        again = encode_images(encoder, [images[row] for row in lost], cache=cache)
        vectors[lost] = again.vectors
        spent.encoded += again.spent.encoded
    return _encoded(vectors, digests, spent, began)


def _prepared(
    encoder: Encoder, images: Sequence[Image], cache: EmbeddingCache
) -> Iterator[tuple[bytes, NDArray[np.uint8] | None]]:
    """Digest and pixels of each image, in order; no pixels where the vector is known."""
    shelf, known = cache.shelf("images"), cache.digests

    def prepare(image: Image) -> tuple[bytes, NDArray[np.uint8] | None]:
        if (digest := known.get(image)) and digest in shelf:
            return digest, None
        try:
            content = image.read()
            digest = known[image] = hashlib.sha256(content).digest()
            return digest, None if digest in shelf else encoder.prepare(content).pixels
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"image {image.key}: {error}. A number over fewer images is not comparable: get this one again"
            ) from error

    waiting: deque[Future[tuple[bytes, NDArray[np.uint8] | None]]] = deque()
    with ThreadPoolExecutor(max_workers=min(8, max(2, os.cpu_count() or 1))) as pool:
        try:
            for image in images:
                waiting.append(pool.submit(prepare, image))
                if len(waiting) >= 4 * _BATCH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def encode_texts(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    cache: EmbeddingCache,
    progress: Callable[[int], None] | None = None,
) -> Encoded:
    """Vectors of texts: from disk where they are known, the others encoded now, equal ones once."""
    shelf = cache.shelf("texts")
    began, spent = time.monotonic(), Spent()
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    # Sorted by length over all of them, so that a forward pass has little padding; by characters, which costs nothing.
    new = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in shelf}
    order = sorted(new.items(), key=lambda item: len(item[1]))
    if progress:
        progress(len(texts) - len(order))
    with catch_warnings():
        filterwarnings("ignore", category=TextTooLongWarning)  # how many are cut is in the results
        try:
            for start in range(0, len(order), 8 * _BATCH):
                chunk = order[start : start + 8 * _BATCH]
                shelf.put([digest for digest, _ in chunk], encoder.encode_texts([text for _, text in chunk]))
                if progress:
                    progress(len(chunk))
        finally:
            shelf.flush()
    vectors = np.empty((len(texts), encoder.info.dim), dtype=np.float32)
    spent.encoded = len(order)
    if lost := shelf.fill(vectors, digests):
        again = encode_texts(encoder, [texts[row] for row in lost], cache=cache)
        vectors[lost] = again.vectors
        spent.encoded += again.spent.encoded
    return _encoded(vectors, digests, spent, began)


def _encoded(vectors: NDArray[np.float32], digests: Sequence[bytes], spent: Spent, began: float) -> Encoded:
    spent.remembered = len(vectors) - spent.encoded
    spent.seconds = time.monotonic() - began
    return Encoded(vectors=vectors, digests=tuple(digest.hex() for digest in digests), spent=spent)


class CachedTexts:
    """The text tower of an encoder, with its vectors cached on disk."""

    def __init__(self, encoder: Encoder, cache: EmbeddingCache) -> None:
        self._encoder, self._cache = encoder, cache
        self.count_tokens = encoder.count_tokens

    def encode_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Shape: (texts, dim), float32, unit rows."""
        return encode_texts(self._encoder, texts, cache=self._cache).vectors
