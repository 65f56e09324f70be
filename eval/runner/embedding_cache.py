"""Vectors kept on disk and found again by what they are vectors of, so that nothing is encoded twice.

A vector belongs to an encoder (its hashes, preprocessing and arithmetic) and to content: the bytes of an image,
the characters of a text. Where the image lay or what it was called does not count. Vectors are written a few
hundred at a time, each file under its final name only when it is whole: what an interruption loses is seconds.
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

Side = Literal["images", "texts"]

_BATCH = 64
"""Images or texts of one forward pass."""
_WRITE_EVERY = 1024
"""Vectors after which a file is written, ..."""
_WRITE_SECONDS = 20.0
"""... or seconds, whichever comes first."""


class Image(Protocol):
    """An encoded image that is read when asked for."""

    @property
    def key(self) -> str:
        """Its name within its set."""

    def read(self) -> bytes:
        """Its bytes."""


@dataclass(kw_only=True)
class Spent:
    """What encoding one side took."""

    encoded: int = 0
    """Items that went through the encoder now."""
    remembered: int = 0
    """Items whose vectors were on disk."""
    seconds: float = 0.0
    """Wall clock from the first item that had to be encoded to the last vector."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One side of a set as vectors."""

    vectors: NDArray[np.float32]
    """Shape: (items, dim), float32, unit rows, in the order of the items."""
    digests: tuple[str, ...]
    """SHA-256 of each item's content, hexadecimal."""
    spent: Spent
    """What it took."""


class FeatureStore:
    """Vectors of one encoder in one arithmetic, on disk."""

    def __init__(self, root: Path, *, key: str, dim: int, digests: dict[Image, bytes] | None = None) -> None:
        """Nothing is read until it is asked for.

        Args:
            root: Folder of all encoders' vectors.
            key: Tells this encoder and its arithmetic from all others; see ``EncoderRecord.key``.
            dim: Length of a vector.
            digests: SHA-256 of images that were read before, such as for another language of the same set; added
                to. An image is then not read again to be recognised.
        """
        self.digests: dict[Image, bytes] = {} if digests is None else digests
        """SHA-256 of images that were read."""
        self._folder = root / key
        self._dim = dim
        self._shelves: dict[Side, _Shelf] = {}

    def shelf(self, side: Side) -> _Shelf:
        """What is known of images or of texts."""
        if side not in self._shelves:
            self._shelves[side] = _Shelf(self._folder / side, dim=self._dim)
        return self._shelves[side]


class _Shelf:
    """Files of vectors, each with the digests of what they belong to."""

    def __init__(self, folder: Path, *, dim: int) -> None:
        self._folder, self._dim = folder, dim
        self._place: dict[bytes, tuple[Path, int]] = {}
        for path in sorted(folder.glob("*.npz")):
            for row, digest in enumerate(self._digests(path)):
                self._place[digest] = (path, row)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._place

    def fill(self, target: NDArray[np.float32], digests: Sequence[bytes]) -> list[int]:
        """Copy the vectors that are known into the rows of ``target``; return the rows that are not."""
        wanted: dict[Path, list[tuple[int, int]]] = {}
        missing = []
        for row, digest in enumerate(digests):
            if found := self._place.get(digest):
                wanted.setdefault(found[0], []).append((row, found[1]))
            else:
                missing.append(row)
        for path, rows in wanted.items():
            vectors = self._read(path, "vectors")
            to, of = np.array(rows).T
            if vectors is None:  # damaged: the same as never written
                missing += to.tolist()
                self._place = {digest: place for digest, place in self._place.items() if place[0] != path}
                continue
            target[to] = vectors[of]
        return sorted(missing)

    def add(self, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Write vectors and the digests of what they belong to as one file, whole or not at all."""
        if not digests:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(b"".join(digests)).hexdigest()[:24]
        path = self._folder / f"{name}.npz"
        with atomic_path(path) as draft, draft.open("wb") as file:
            np.savez(
                file, digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32), vectors=vectors
            )
        self._place.update({digest: (path, row) for row, digest in enumerate(digests)})

    def _digests(self, path: Path) -> list[bytes]:
        digests = self._read(path, "digests")
        if digests is None:
            return []
        return [row.tobytes() for row in digests]

    def _read(self, path: Path, name: str) -> NDArray[np.float32] | None:
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                found: NDArray[np.float32] = file[name]
                shape = found.shape
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log_stderr(f"{path} is damaged ({error}): its vectors are made again")
            path.unlink(missing_ok=True)
            return None
        if shape[1:] != ((self._dim if name == "vectors" else 32),):
            log_stderr(f"{path} holds {name} of shape {shape}: its vectors are made again")
            path.unlink(missing_ok=True)
            return None
        return found


@dataclass
class _Pending:
    """Vectors that are not written yet."""

    shelf: _Shelf
    digests: list[bytes] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def add(self, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        self.digests += digests
        self.vectors.append(vectors)
        if len(self.digests) >= _WRITE_EVERY or time.monotonic() - self.since > _WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        if self.digests:
            self.shelf.add(self.digests, np.concatenate(self.vectors))
        self.digests, self.vectors, self.since = [], [], time.monotonic()


def encode_images(
    encoder: Encoder,
    images: Sequence[Image],
    *,
    store: FeatureStore,
    progress: Callable[[int], None] | None = None,
) -> Encoded:
    """Vectors of images: those on disk from there, the others encoded now and written.

    Images are read, hashed and decoded beside the forward passes, a few batches ahead.

    Raises:
        DatasetError: An image cannot be read or decoded: a number over fewer images is another number.
    """
    shelf = store.shelf("images")
    vectors = np.empty((len(images), encoder.info.dim), dtype=np.float32)
    digests: list[bytes] = []
    began, spent = time.monotonic(), Spent()
    pending, new = _Pending(shelf), _Batch()
    try:
        for row, (digest, pixels) in enumerate(_prepared(encoder, images, store)):
            digests.append(digest)
            if pixels is not None:
                new.add(row, digest, pixels)
            elif not (new.rows or spent.encoded):
                began = time.monotonic()  # what an earlier run encoded says nothing of speed
            if len(new.rows) == _BATCH or (new.rows and row == len(images) - 1):
                vectors[new.rows] = encoder.encode_prepared(np.stack(new.pixels))
                pending.add(new.digests, vectors[new.rows])
                spent.encoded += len(new.rows)
                new = _Batch()
            if progress:
                progress(1)
    finally:
        pending.write()
    if lost := shelf.fill(vectors, digests):
        again = encode_images(encoder, [images[row] for row in lost], store=store)
        vectors[lost] = again.vectors
        spent.encoded += again.spent.encoded
    spent.remembered = len(images) - spent.encoded
    spent.seconds = time.monotonic() - began
    return Encoded(vectors=vectors, digests=tuple(digest.hex() for digest in digests), spent=spent)


@dataclass
class _Batch:
    """Images of the next forward pass."""

    rows: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)

    def add(self, row: int, digest: bytes, pixels: NDArray[np.uint8]) -> None:
        self.rows.append(row)
        self.digests.append(digest)
        self.pixels.append(pixels)


def _prepared(
    encoder: Encoder, images: Sequence[Image], store: FeatureStore
) -> Iterator[tuple[bytes, NDArray[np.uint8] | None]]:
    """Digest and pixels of each image, in order; no pixels where the vector is known."""
    shelf, known = store.shelf("images"), store.digests

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
    store: FeatureStore,
    progress: Callable[[int], None] | None = None,
) -> Encoded:
    """Vectors of texts: those on disk from there, the others encoded now and written. Equal texts are read once.

    Raises:
        ValueError: A text is empty or no valid Unicode.
    """
    shelf = store.shelf("texts")
    began, spent = time.monotonic(), Spent()
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    # By length over all of them, so that a forward pass has little to fill up; by characters, which costs nothing.
    new = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in shelf}
    order = sorted(new.items(), key=lambda item: len(item[1]))
    if progress:
        progress(len(texts) - len(order))
    pending = _Pending(shelf)
    with catch_warnings():
        filterwarnings("ignore", category=TextTooLongWarning)  # how many are cut is in the results
        try:
            for start in range(0, len(order), 8 * _BATCH):
                chunk = order[start : start + 8 * _BATCH]
                pending.add(
                    [digest for digest, _ in chunk], encoder.encode_texts([text for _, text in chunk])
                )
                if progress:
                    progress(len(chunk))
        finally:
            pending.write()
    vectors = np.empty((len(texts), encoder.info.dim), dtype=np.float32)
    spent.encoded = len(order)
    if lost := shelf.fill(vectors, digests):
        again = encode_texts(encoder, [texts[row] for row in lost], store=store)
        vectors[lost] = again.vectors
        spent.encoded += again.spent.encoded
    spent.remembered = len(texts) - spent.encoded
    spent.seconds = time.monotonic() - began
    return Encoded(vectors=vectors, digests=tuple(digest.hex() for digest in digests), spent=spent)
