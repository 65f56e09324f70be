"""``Index.search`` and ``Searcher.search`` beside a bare FAISS search of the same vectors.

Bare is what one would write by hand: a flat FAISS index over float32 rows, and nothing but ids and scores out. Ours
reads half as many bytes, computes scores exactly, and looks every hit up in the database. Queries are ready vectors.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Row, Settings
from llm2clip.encoders import Encoder, EncoderInfo, ImageError, ImageSource, PreparedImage
from llm2clip.indexer import Index, open_index
from llm2clip.indexer.lifecycle.commit import commit
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.storage.manifest import empty_manifest
from llm2clip.indexer.storage.outcome import Outcome
from llm2clip.indexer.storage.transaction import Transaction
from llm2clip.retrieval import Searcher

DIM = 192
K = 10
QUERIES = 256


class ReadyEncoder(Encoder):
    """Text ``"17"`` is row 17 of vectors made beforehand: encoding costs next to nothing."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._info = EncoderInfo(
            name="ready",
            family="fake",
            dim=DIM,
            image_size=8,
            max_text_tokens=8,
            weights_sha256="0" * 64,
            settings_sha256="0" * 64,
            preprocessing="none",
            parameters=0,
            languages=(),
            licence="MIT",
            note="for benchmarks",
        )

    @property
    def info(self) -> EncoderInfo:
        return self._info

    def _prepare(self, image: ImageSource, *, draft: bool) -> PreparedImage:
        raise ImageError("this encoder sees no images")

    def _image_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise ImageError("this encoder sees no images")

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors[[int(text) for text in texts]]

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [1] * len(texts)


def measure(settings: Settings) -> list[Row]:
    """Both sizes, one query at a time and many at once."""
    rows: list[Row] = []
    for count in (2_000,) if settings.quick else (10_000, 1_000_000):
        folder = settings.work / f"random-{count}"
        encoder = ReadyEncoder(unit_rows(np.random.default_rng(1), QUERIES))
        write_random_index(folder, count=count, encoder=encoder)
        with open_index(folder) as index:
            rows += _compare(settings, index, encoder)
    return rows


def unit_rows(random: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Random directions. Shape: (count, DIM), float32, unit rows."""
    rows = random.standard_normal((count, DIM), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def write_random_index(folder: Path, *, count: int, encoder: ReadyEncoder) -> None:
    """An index of random vectors with captions and metadata, as a build would write it."""
    folder.mkdir(parents=True)
    base = empty_manifest(
        sources=[{"kind": "folder", "spec": "random", "root": "/random"}],
        encoder=encoder.info.identity(),
        encoder_source="ready",
    )
    random = np.random.default_rng(0)
    with Transaction.create(folder, base) as transaction:
        for start in range(0, count, 2_000):
            rows = unit_rows(random, min(2_000, count - start)).astype(np.float16)
            transaction.append([_outcome(start + number, row) for number, row in enumerate(rows)])
        commit(transaction, folder)


def _outcome(number: int, vector: NDArray[np.float16]) -> Outcome:
    record = Record(
        key=f"{number // 1000:04d}/{number:08d}.jpg",
        uri="",
        file=Path("x"),
        size=100_000,
        mtime_ns=1,
        caption=f"image number {number} of the random ones",
        metadata={"emoji": "🎲", "number": number},
    )
    return Outcome(record=record, vector=vector, hash=b"0" * 16, width=640, height=480)


def _compare(settings: Settings, index: Index, encoder: ReadyEncoder) -> list[Row]:
    bare = faiss.IndexFlatIP(DIM)
    for segment in index.manifest.segments:
        bare.add(np.load(index.path / segment.file).astype(np.float32))
    texts = [str(number) for number in range(QUERIES)]
    queries = encoder.encode_texts(texts)
    searcher = Searcher(index, encoder=encoder)
    small = len(index) < 100_000
    rows: list[Row] = []
    for at_once, times in ((1, 400 if small else 40), (64, 40 if small else 8)):
        slices = [slice(start, start + at_once) for start in range(0, QUERIES, at_once)]
        calls = {
            "bare FAISS": lambda part: bare.search(queries[part], K),
            "Index.search": lambda part: index.search(queries[part], k=K),
            "Searcher.search": lambda part: searcher.search(texts[part], k=K),
        }
        took = _in_turns(calls, slices, times=settings.times(times), clock=settings.clock)
        label = f"{len(index):,} vectors, {at_once} at once"
        rows += _rows(label, took)
    return rows


def _rows(label: str, took: Mapping[str, float]) -> list[Row]:
    bare = took["bare FAISS"]
    rows = [Row(benchmark="search", what=f"{label}: bare FAISS", value=bare * 1e3, unit="ms")]
    for name in ("Index.search", "Searcher.search"):
        what, note = f"{label}: {name} / bare", f"{took[name] * 1e3:.3f} ms"
        rows.append(
            Row(benchmark="search", what=what, value=took[name] / bare, unit="ratio", aim=1.3, note=note)
        )
    return rows


def _in_turns(
    calls: Mapping[str, Callable[[slice], object]],
    slices: Sequence[slice],
    *,
    times: int,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Median seconds of each call, measured in turns so that a busy machine slows all alike."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(slices[0])
    for turn in range(times):
        for name, call in calls.items():
            began = clock()
            call(slices[turn % len(slices)])
            took[name].append(clock() - began)
    return {name: statistics.median(each) for name, each in took.items()}
