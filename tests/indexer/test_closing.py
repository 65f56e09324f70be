"""Items are closed only when nobody reads them: SQLite ends the process where both happen at once."""

from __future__ import annotations

import threading

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import IndexerError, build_index, open_index
from llm2clip.indexer.ingest.vector_reuse import UncommittedVectors


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
    path = index.items.path
    unfinished = UncommittedVectors(path, source={}, dim=index.manifest.dim, generation=9, first=9)
    for reader in (unfinished, index.items):
        closes_after_the_reader(reader)
    with pytest.raises(IndexerError):
        unfinished.by_hash(b"0", key="a")
    with pytest.raises(IndexerError):
        index.items.rows("SELECT 1")
    index.close()
