"""Batch sizes, threads that decode, images decoded at reduced size or read in groups, and those the encoder refuses."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import BuildOptions, Record, build_index, compact_index, open_index, update_index
from llm2clip.indexer.containers.read_ahead import MAX_GROUPS, ReadAheadGroup
from llm2clip.indexer.ingest.decode_pipeline import decode_images
from llm2clip.indexer.ingest.encode_batches import (
    AdaptiveBatchSize,
    BackgroundWriter,
    batches_of,
    encode_batch,
)
from llm2clip.indexer.lifecycle import sync
from llm2clip.indexer.lifecycle.build import peak_memory
from llm2clip.indexer.storage.manifest import read_manifest, write_manifest
from llm2clip.indexer.storage.outcome import Outcome

from ..encoders.test_reduced import photograph
from .material import colour_of, encoded, put
from .material import numbered as named


def settled(seconds: Callable[[int], float], *, turns: int = 60) -> list[int]:
    """The sizes that are tried where a pass over n images takes ``seconds(n)``; the last stays."""
    now = [0.0]
    batches = AdaptiveBatchSize(clock=lambda: now[0])
    sizes = []
    for _ in range(turns):
        sizes.append(batches.size)
        with batches:
            now[0] += seconds(batches.size)
    assert batches.settled
    return sizes


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda n: n * 0.01, 8),  # a processor: no batch is faster than another
        (lambda n: 0.05 + n * 0.01, 64),  # what a pass costs whatever its size is worth less and less
        (lambda n: 0.05, 256),  # a device that is never busy
        (lambda n: n * 0.01 if n <= 32 else n * 0.02, 8),
        (lambda n: n**0.5 if n <= 32 else n, 32),  # too large for a cache
    ],
)
def test_adaptive_batch_size_finds_the_smallest_fast_size(seconds, expected):
    sizes = settled(seconds)
    assert sizes[-1] == expected
    assert sizes[:3] == [8, 8, 8]
    assert max(sizes) <= 256


def test_adaptive_batch_size_ignores_one_slow_pass():
    slow = iter([5.0, 0, 0] * 100)
    assert settled(lambda n: n * 0.01 + next(slow))[-1] == 8


def test_adaptive_batch_size_keeps_a_given_size():
    batches = AdaptiveBatchSize(7)
    for _ in range(10):
        with batches:
            pass
        assert (batches.size, batches.settled) == (7, True)


def test_background_writer_works_in_order():
    done: list[int] = []

    def slowly(item: int) -> None:
        time.sleep(0.002)
        done.append(item)

    with BackgroundWriter(slowly) as behind:
        for item in range(20):
            behind.put(item)
            assert len(done) >= item - 2  # one waits at most, and one is being worked on
    assert done == list(range(20))


def test_background_writer_raises_the_first_error():
    done: list[int] = []

    def fail(item: int) -> None:
        if item == 3:
            raise OSError("disk full")
        done.append(item)

    def hand_over(items: range) -> None:
        with BackgroundWriter(fail) as behind:
            for item in items:
                behind.put(item)

    with pytest.raises(OSError, match="disk full"):
        hand_over(range(1000))
    assert done == [0, 1, 2]
    with pytest.raises(OSError, match="disk full"):
        hand_over(range(3, 4))  # nothing follows that could notice


def test_background_writer_finishes_after_interrupt():
    done: list[int] = []

    def interrupted() -> None:
        with BackgroundWriter(done.append) as behind:
            behind.put(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [1]
    assert not [thread for thread in threading.enumerate() if thread.name == "write"]


class Slow(FakeEncoder):
    """Waits for each image as for a slow disk, and notes how many wait at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = self.most = 0
        self.guard = threading.Lock()

    def prepare(self, image: bytes, *, draft: bool = False):  # type: ignore[override]
        with self.guard:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        time.sleep(0.05)
        with self.guard:
            self.waiting -= 1
        return super().prepare(image, draft=draft)


def outcomes_of(
    folder: Path, encoder: FakeEncoder, *, count: int, workers: int | None = None, size: int = 1
) -> list[Outcome]:
    """What becomes of so many images whose files are said to have ``size`` bytes."""
    images = named(range(count), name="{:04d}.png")
    put(folder, images)
    files = [folder / name for name in images]
    records = (Record(key=file.name, uri=str(file), file=file, size=size) for file in files)
    batches = AdaptiveBatchSize(8)
    ready = decode_images(records, decode=encoder.prepare, caches=[], workers=workers, size=batches)
    found, works = [], False
    for batch in batches_of(ready, batches):
        works = encode_batch(batch, encoder, batches, works=works)
        found += batch
    return found


def test_decode_images_adds_threads_for_slow_storage(tmp_path, monkeypatch):
    monkeypatch.setattr("llm2clip.indexer.ingest.decode_pipeline._LOOK", 0.2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    encoder = Slow()
    outcomes = outcomes_of(tmp_path / "p", encoder, count=120)
    assert [outcome.record.key for outcome in outcomes] == [f"{number:04d}.png" for number in range(120)]
    assert 2 < encoder.most <= 16


def test_decode_images_keeps_to_given_workers(tmp_path):
    encoder = Slow()
    outcomes_of(tmp_path / "p", encoder, count=24, workers=3)
    assert encoder.most == 3


def test_decode_images_decodes_two_large_files_at_once(tmp_path):
    encoder = Slow()
    outcomes = outcomes_of(tmp_path / "p", encoder, count=12, workers=6, size=8 * 2**20)
    assert encoder.most == 2
    vectors = np.stack([outcome.vector for outcome in outcomes]).astype(np.float32)
    expected = FakeEncoder().encode_images([encoded(colour_of(number)) for number in range(12)])
    np.testing.assert_allclose(vectors, expected, atol=1e-3)


class Small(FakeEncoder):
    """Has memory for so many images."""

    def __init__(self, *, room: int) -> None:
        super().__init__()
        self.room = room

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        if len(pixels) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super()._image_batch(pixels)


@pytest.mark.parametrize("room", [1, 3, 5])
def test_encode_batch_halves_batches_that_do_not_fit(tmp_path, room):
    encoder = Small(room=room)
    outcomes = outcomes_of(tmp_path / "p", encoder, count=30, workers=2)
    vectors = np.stack([outcome.vector for outcome in outcomes]).astype(np.float32)
    expected = FakeEncoder().encode_images([encoded(colour_of(number)) for number in range(30)])
    np.testing.assert_allclose(vectors, expected, atol=1e-3)
    assert max(encoder.image_batches) <= room


def test_encode_batch_raises_other_errors(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        outcomes_of(tmp_path / "p", Small(room=0), count=9, workers=2)

    class Broken(FakeEncoder):
        def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
            raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side assert"):
        outcomes_of(tmp_path / "q", Broken(), count=9, workers=2)


def test_peak_memory_grows():
    before = peak_memory()
    if before is None:
        pytest.skip("this system does not say")
    block = np.ones(before // 8 + 10_000_000)  # more than was ever held
    after = peak_memory()
    assert after is not None
    assert after - before > 60_000_000
    del block


class Refusing(FakeEncoder):
    """Gives no direction to images of some colours."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.refused = [colour_of(number) for number in numbers]

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        rows = super()._image_batch(pixels)
        for colour in self.refused:
            rows[(pixels[:, 4, 4] == colour).all(axis=1)] = 0
        return rows


@pytest.fixture
def numbered(tmp_path):
    """Ten images in order of their numbers."""
    return put(tmp_path / "numbered", named(range(10), name="{}.png"))


def test_encode_batch_lists_a_refused_batch_once_others_were_encoded(numbered, tmp_path):
    options = BuildOptions(batch_size=2)
    for _ in range(2):  # the same again: what was refused is tried again, and refused again
        report = build_index(numbered, tmp_path / "i", encoder=Refusing(4, 5, 8, 9), options=options)
        assert (report.items, report.bad) == (6, 4)
        assert [bad.key for bad in report.bad_images] == ["4.png", "5.png", "8.png", "9.png"]
        assert {bad.reason for bad in report.bad_images} == {
            "encoder 'fake' gave an image vector without a direction (zero or not finite)"
        }
    report = build_index(numbered, tmp_path / "i", encoder=FakeEncoder(), options=options)
    assert (report.items, report.embedded, report.bad) == (10, 4, 0)


def test_encode_batch_lists_refused_images_of_an_update(numbered, tmp_path):
    build_index(numbered, tmp_path / "i", encoder=FakeEncoder())
    put(numbered, named((20, 21), name="{}.png"))
    report = build_index(numbered, tmp_path / "i", encoder=Refusing(20, 21))
    assert (report.items, report.kept) == (10, 10)
    assert [bad.key for bad in report.bad_images] == ["20.png", "21.png"]
    with open_index(tmp_path / "i") as index:
        assert [(row.key, row.stage) for row in index.errors()] == [(f"{n}.png", "encode") for n in (20, 21)]


def test_encode_batch_raises_if_the_first_batch_is_refused(numbered, tmp_path):
    with pytest.raises(ValueError, match="encoder 'fake' gave an image vector without a direction"):
        build_index(numbered, tmp_path / "i", encoder=Refusing(0, 1), options=BuildOptions(batch_size=2))
    assert not (tmp_path / "i").exists()


class Eye(FakeEncoder):
    """Sees the pixels themselves."""

    def __init__(self) -> None:
        super().__init__(image_size=8, dim=192)

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1).astype(np.float32) + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    for number in range(20):
        (place / f"{number:02d}.jpg").write_bytes(photograph(400 + 20 * number, 300 + 15 * number))
    return place


def stored(index: Path, key: str) -> tuple[np.ndarray, tuple[int, int]]:
    with open_index(index) as opened:
        [row] = [row for rows in opened.items.each() for row in rows if row.key == key]
        return opened.vectors.take(np.array([row.id]))[0], (row.width, row.height)


def expected(image: Path, draft: bool) -> np.ndarray:
    encoder = Eye()
    return encoder.encode_prepared(encoder.prepare(image.read_bytes(), draft=draft).pixels[None])[0]


@pytest.mark.parametrize(("threshold", "margin"), [(20, 2), (21, 0)])
def test_build_index_decodes_large_corpora_at_reduced_size(folder, tmp_path, monkeypatch, threshold, margin):
    monkeypatch.setattr(sync, "DRAFT_FROM", threshold)
    build_index(folder, tmp_path / "i", encoder=Eye())
    assert read_manifest(tmp_path / "i").decoding == ({"margin": margin} if margin else None)
    vector, size = stored(tmp_path / "i", "05.jpg")
    np.testing.assert_array_equal(vector, expected(folder / "05.jpg", margin > 0).astype(np.float16))
    assert size == (500, 375)
    assert not np.array_equal(expected(folder / "05.jpg", False), expected(folder / "05.jpg", True))


def test_build_index_decodes_at_full_size_if_prepare_takes_no_draft(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "DRAFT_FROM", 20)
    inner = Eye()
    encoder = SimpleNamespace(
        info=inner.info, prepare=lambda image: inner.prepare(image), encode_prepared=inner.encode_prepared
    )
    build_index(folder, tmp_path / "i", encoder=encoder)
    assert read_manifest(tmp_path / "i").decoding is None
    vector, _ = stored(tmp_path / "i", "05.jpg")
    np.testing.assert_array_equal(vector, expected(folder / "05.jpg", False).astype(np.float16))


@pytest.mark.parametrize("margin", [0, 1])
def test_update_index_keeps_the_decoding_of_an_earlier_release(folder, tmp_path, margin):
    """Which chose it by trial, and noted the result with ``cosine`` and ``probes``."""
    index = tmp_path / "i"
    build_index(folder, index, encoder=Eye())
    decoding = {"margin": margin, "cosine": 0.9995, "probes": 16}
    write_manifest(index, replace(read_manifest(index), decoding=decoding))
    for change in (lambda: None, lambda: compact_index(index)):
        change()
        (folder / "new.jpg").write_bytes(photograph(620, 404 + len(list(folder.iterdir()))))
        update_index(index, encoder=Eye())
        assert read_manifest(index).decoding == decoding
        vector, _ = stored(index, "new.jpg")
        np.testing.assert_array_equal(vector, expected(folder / "new.jpg", margin > 0).astype(np.float16))


def test_read_ahead_group_reads_all_once_and_releases_each():
    loads, ones = [], []
    chunk = ReadAheadGroup(
        lambda: loads.append(1) or [b"a", b"b", b"c"], one=lambda number: ones.append(number) or b"again"
    )
    assert [chunk.take(number) for number in (1, 0, 2)] == [b"b", b"a", b"c"]
    assert (loads, ones) == ([1], [])
    assert chunk.take(1) == b"again"
    assert (loads, ones) == ([1], [1])


def test_read_ahead_group_isolates_errors():
    chunk = ReadAheadGroup(lambda: [b"a", ValueError("damaged"), b"c"], one=lambda number: b"")
    assert (chunk.take(0), chunk.take(2)) == (b"a", b"c")
    with pytest.raises(ValueError, match="damaged"):
        chunk.take(1)


def test_read_ahead_group_keeps_few_groups_in_memory():
    def made():
        return ReadAheadGroup(lambda: [b"a", b"b"], one=lambda number: b"alone")

    many = [made() for _ in range(10 * MAX_GROUPS)]
    assert [chunk.take(0) for chunk in many] == [b"a"] * len(many)
    assert sum(chunk.waiting for chunk in many) == MAX_GROUPS
    assert [chunk.take(1) for chunk in many] == [b"alone"] * (len(many) - MAX_GROUPS) + [b"b"] * MAX_GROUPS
    assert sum(chunk.waiting for chunk in many) == 0
