"""Vector segments, and closing files that are read."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import IndexDamagedError, IndexerError, build_index, open_index
from llm2clip.indexer.core.index_paths import segment_name
from llm2clip.indexer.storage.vector_segments import (
    SegmentWriter,
    Vectors,
    map_appended,
    map_segment,
)

pieces = st.lists(st.integers(0, 7), max_size=8)


def rows_of(count: int, dim: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, dim)).astype(np.float16)


@given(pieces=pieces, limit=st.integers(1, 9), dim=st.integers(1, 5))
def test_segment_writer_rows_come_back(tmp_path_factory, pieces, limit, dim):
    folder = tmp_path_factory.mktemp("segments")
    rows = rows_of(sum(pieces), dim)
    writer = SegmentWriter(folder, generation=3, dim=dim, segment_rows=limit)
    start = 0
    for piece in pieces:
        writer.append(rows[start : start + piece])
        start += piece
    # What a killed process leaves.
    left = [map_appended(folder, writer.name(number), dim=dim) for number in range(len(writer.rows))]
    np.testing.assert_array_equal(np.concatenate([*left, np.empty((0, dim), np.float16)]), rows)
    writer.close(finish=True)
    assert all(count <= limit for count in writer.rows)
    files = [folder / segment_name(3, number) for number in range(len(writer.rows))]
    loaded = [np.load(file) for file in files]
    np.testing.assert_array_equal(np.concatenate([*loaded, np.empty((0, dim), np.float16)]), rows)
    mapped = [map_segment(file, rows=n, dim=dim) for file, n in zip(files, writer.rows, strict=True)]
    vectors = Vectors(mapped, dim=dim)
    assert len(vectors) == len(rows)
    ids = np.random.default_rng(0).integers(0, max(1, len(rows)), size=10 if len(rows) else 0)
    np.testing.assert_array_equal(vectors.take(ids), rows[ids])
    blocks = list(vectors.blocks(4))
    assert [first for first, _ in blocks] == list(np.cumsum([0, *(len(b) for _, b in blocks)]))[: len(blocks)]
    np.testing.assert_array_equal(np.concatenate([*(b for _, b in blocks), np.empty((0, dim))]), rows)


def test_map_appended_gives_whole_rows_of_a_cut_file(tmp_path):
    writer = SegmentWriter(tmp_path, generation=1, dim=2)
    writer.append(rows_of(4, 2))
    writer.close(finish=False)
    path = tmp_path / segment_name(1, 0)
    path.write_bytes(path.read_bytes()[:-5])
    np.testing.assert_array_equal(map_appended(tmp_path, path.name, dim=2), rows_of(4, 2)[:2])
    path.write_bytes(b"")
    assert map_appended(tmp_path, path.name, dim=2).shape == (0, 2)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"X" + b[1:], lambda b: b""]
)
def test_map_segment_refuses_a_changed_file(tmp_path, change):
    writer = SegmentWriter(tmp_path, generation=1, dim=2)
    writer.append(rows_of(3, 2))
    writer.close(finish=True)
    path = tmp_path / segment_name(1, 0)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IndexDamagedError, match="expected 3 rows of 2 float16 numbers"):
        map_segment(path, rows=3, dim=2)
    path.unlink()
    with pytest.raises(IndexDamagedError, match="is missing"):
        map_segment(path, rows=3, dim=2)


def test_segment_writer_refuses_rows_after_close(tmp_path):
    writer = SegmentWriter(tmp_path, generation=1, dim=2)
    writer.append(rows_of(1, 2))
    writer.close(finish=False)
    with pytest.raises(ValueError, match="closed"):
        writer.append(rows_of(1, 2))


def closes_after_the_reader(reader) -> None:
    reader._lock.acquire()  # a thread is in the middle of a statement
    closing = threading.Thread(target=reader.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    reader._lock.release()
    closing.join(60)
    assert not closing.is_alive()


def test_close_waits_for_readers_of_items(photos, tmp_path):
    build_index(photos, tmp_path / "index", encoder=FakeEncoder())
    index = open_index(tmp_path / "index")
    closes_after_the_reader(index.items)
    with pytest.raises(IndexerError):
        index.items.rows("SELECT 1")
    index.close()
