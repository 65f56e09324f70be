"""Images, tars and rows for tests."""

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import Corpus, Index, Record, open_corpus, open_index
from llm2clip.indexer.core.index_paths import uri_of
from llm2clip.indexer.corpora.locator import read_located
from llm2clip.indexer.lifecycle.commit import Planner, commit
from llm2clip.indexer.storage.manifest import empty_manifest
from llm2clip.indexer.storage.outcome import Outcome
from llm2clip.indexer.storage.transaction import Transaction


def encoded(colour: tuple[int, int, int], *, size: tuple[int, int] = (12, 8), format: str = "PNG") -> bytes:
    """An encoded image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


def put(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with these files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


IMAGE = encoded((1, 2, 3))


def put_images(folder: Path, *names: str) -> None:
    """Write the same image under these names."""
    put(folder, dict.fromkeys(names, IMAGE))


def numbered(numbers: Iterable[int], *, name: str = "{:03d}.png", colours: int = 0) -> dict[str, bytes]:
    """Images named by their numbers, each of a colour of its own."""
    return {name.format(number): encoded(colour_of(colours + number)) for number in numbers}


def tar_of(
    members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], *, format: int = tarfile.DEFAULT_FORMAT
) -> bytes:
    """A tar with these members, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour of its own for every number below 16 million."""
    mixed = number * 2654435761 % 2**24
    return mixed & 255, mixed >> 8 & 255, mixed >> 16


def records(spec: str | Path, **options: float) -> list[Record]:
    """All images of a corpus."""
    return list(open_corpus(spec, **options).records())


def check_located(corpus: Corpus) -> None:
    """Each image of a corpus can be read again by its locator, and has its URI."""
    for record in corpus.records():
        place = {"key": record.key, "corpus": corpus.identity()}
        assert read_located(record.locator, **place) == record.read()
        assert uri_of(**place) == record.uri


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


def whole(path: Path) -> dict[tuple[int, str], tuple[object, ...]]:
    """The content of an index in which no problem is found."""
    with open_index(path) as index:
        assert index.verify().problems == ()
        return content(index)


def write_index(folder: Path, rows: np.ndarray, *, planner: Planner | None = None) -> Index:
    """An index of given rows, (n, dim), without any image; opened."""
    folder.mkdir(exist_ok=True)
    base = empty_manifest(
        sources=[{"kind": "folder", "spec": "p", "root": "/p"}],
        encoder={"name": "rows", "dim": rows.shape[1], "weights_sha256": "0", "preprocessing": "none"},
        encoder_source="rows",
    )
    outcomes = [
        Outcome(
            record=Record(key=f"{n}.png", uri="", file=Path(), size=1, mtime_ns=1, caption=f"number {n}"),
            vector=row,
            hash=n.to_bytes(16, "big"),
            width=n + 1,
            height=1,
        )
        for n, row in enumerate(rows.astype(np.float16))
    ]
    with Transaction.create(folder, base) as transaction:
        transaction.append(outcomes)
        commit(transaction, folder, planner=planner)
    return open_index(folder)


def flip(path: Path, place: int) -> None:
    """Flip the lowest bit of a byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


class Stopping(FakeEncoder):
    """Stops after some batches, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        if len(self.image_batches) == self.after:
            raise KeyboardInterrupt
        return super()._image_batch(pixels)


def clustered(rows: int, dim: int, *, seed: int) -> np.ndarray:
    """Rows around fifty centres, the same ones for every seed. Shape: (rows, dim), float32, unit rows."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((50, dim))
    return unit(centres[random.integers(0, 50, rows)] + 0.8 * random.standard_normal((rows, dim)))
