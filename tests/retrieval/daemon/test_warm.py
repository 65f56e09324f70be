"""What the daemon keeps between two searches, in this process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from threading import Thread

import pytest

from llm2clip.encoders import FakeEncoder, load_encoder
from llm2clip.indexer import build_index
from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.core.index_paths import remember
from llm2clip.retrieval import Searcher
from llm2clip.retrieval.daemon.stand_in import deliver, reject_unlike
from llm2clip.retrieval.daemon.versions import file_times
from llm2clip.retrieval.daemon.warm import WarmSearchers
from tests.retrieval.conftest import COLOURS, Corpus, image


def test_warm_searchers_keep_index_and_encoder(corpus: Corpus, fake_by_name: object):
    warm = WarmSearchers()
    with warm.open([str(corpus.index)]) as first:
        found = first.search("red")
    with warm.open([str(corpus.index)]) as second:
        assert second.search("red") == found
    assert second.index is first.index
    assert second.encoder is first.encoder
    assert warm.names() == [f"index {corpus.index}", "encoder fake"]


def test_warm_searchers_keep_the_encoder_for_another_index(corpus: Corpus, fake_by_name: object):
    warm = WarmSearchers()
    with warm.open([str(corpus.index)]) as first:
        encoder, index = first.encoder, first.index
    other = corpus.index.with_name("other.index")
    shutil.copytree(corpus.index, other)
    with warm.open([str(other)]) as second:
        assert [hit.key for hit in second.search("red", k=1)] == ["warm/red.png"]
    assert second.encoder is encoder
    assert second.index is not index
    with pytest.raises(ValueError, match="closed"):
        index.search(encoder.encode_texts(["red"]))


def test_warm_searchers_open_a_new_generation(corpus: Corpus, fake_by_name: object):
    warm = WarmSearchers()
    with warm.open([str(corpus.index)]) as first:
        assert len(first) == len(COLOURS)
        encoder = first.encoder
    (corpus.folder / "new.png").write_bytes(image("#123456"))
    build_index(corpus.folder, corpus.index, encoder=corpus.encoder)
    with warm.open([str(corpus.index)]) as second:
        assert len(second) == len(COLOURS) + 1
    assert second.encoder is encoder


def test_warm_searchers_read_relative_names_from_the_folder_of_each_search(
    corpus: Corpus, fake_by_name: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    warm = WarmSearchers()
    monkeypatch.chdir(corpus.index.parent)
    with warm.open(["images.index"]) as found:
        assert found.index.path == corpus.index
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(IndexerError, match=r"images\.index"), warm.open(["images.index"]):
        pass


def test_warm_searchers_load_an_encoder_whose_files_changed(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from llm2clip import encoders

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    loaded: list[FakeEncoder] = []

    def load(name: str, **_: str) -> FakeEncoder:
        loaded.append(FakeEncoder())
        return loaded[-1]

    monkeypatch.setattr(encoders, "load_encoder", load)
    remember(encoder=str(folder))
    warm = WarmSearchers()
    for content, count in (("{}", 1), ("{}", 1), ('{"changed": 1}', 2), ('{"changed": 1}', 2)):
        if (folder / "config.json").read_text() != content:
            (folder / "config.json").write_text(content)
        with warm.open([str(corpus.index)], encoder=str(folder)) as searcher:
            searcher.search("red")
        assert len(loaded) == count
        assert searcher.encoder is loaded[-1]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_warm_searchers_with_nano_give_the_same_bits(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for name in ("red", "green", "blue"):
        (tmp_path / "images" / f"{name}.png").write_bytes(image(COLOURS[name]))
    build_index(tmp_path / "images", tmp_path / "index", encoder=load_encoder("nano"))
    remember(encoder="nano")
    warm = WarmSearchers()
    with warm.open([str(tmp_path / "index")]) as searcher:
        searcher.search("something else first")
    with warm.open([str(tmp_path / "index")]) as kept, Searcher.open(tmp_path / "index") as cold:
        assert kept.encoder is searcher.encoder
        for query in ("a red square", "一个绿色的方块", "blue " * 300):
            assert kept.search(query) == cold.search(query)


def test_file_times_change_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    before = file_times()
    assert file_times() == before
    assert any(name.endswith("encoders/core/base.py") for name in before)
    os.utime(packages, ns=(1, 1))
    assert file_times() == before | {str(packages): 1}


def test_reject_unlike_names_what_differs():
    own = {"protocol": 1, "variables": {"OMP_NUM_THREADS": "2"}}
    assert reject_unlike(own, own) is None
    assert reject_unlike(own, own | {"protocol": 2}) == "protocol"
    assert reject_unlike(own, {"protocol": 1}) == "OMP_NUM_THREADS"
    assert reject_unlike(own, own | {"variables": {}}) == "OMP_NUM_THREADS"


def test_deliver_ends_with_the_reader():
    reading, writing = os.pipe()
    assert deliver(b"all of it", writing) == 0
    assert os.read(reading, 100) == b"all of it"
    os.close(reading)
    assert deliver(b"more", writing) != 0
    os.close(writing)


def test_deliver_waits_for_a_reader_that_is_slow():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data, found = os.urandom(1 << 20), bytearray()

    def read() -> None:
        while part := os.read(reading, 1 << 16):
            found.extend(part)

    reader = Thread(target=read)
    reader.start()
    assert deliver(data, writing) == 0
    os.close(writing)
    reader.join()
    os.close(reading)
    assert found == data
