"""The sample stands in where nobody built an index; its index is built once, and again when out of date."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import Result

from llm2clip import encoders, indexer
from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import EncoderMismatchError, Index, IndexDamagedError, Progress, build_index, open_index
from llm2clip.indexer.containers import tar as shards
from llm2clip.indexer.core import index_paths as location
from llm2clip.indexer.core.index_paths import locate
from llm2clip.retrieval import Searcher
from llm2clip.retrieval import commands as command
from llm2clip.retrieval.sample_index import open_sample

from .conftest import COLOURS, Corpus, write_coloured_shard


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shard of a sample corpus of eight colours, older than any index."""
    folder = tmp_path / "sample"
    folder.mkdir()
    write_coloured_shard(folder / "colours-000.tar")
    long_ago = time.time() - 1000
    os.utime(folder / "colours-000.tar", (long_ago, long_ago))
    monkeypatch.setattr(location, "sample_folder", lambda: folder)
    monkeypatch.setattr(shards, "sample_folder", lambda: folder)
    return folder / "colours-000.tar"


def keys(result: Result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return [hit["key"] for hit in json.loads(result.stdout)["hits"]]


def test_search_command_without_index_searches_the_sample(sample: Path, search: Callable[..., Result]):
    first = search("red", "--json", "-k", 1)
    assert keys(first) == ["colours-000.tar#red.png"]
    assert first.stderr == (
        "no index was built yet: searching the sample images (building their index first)\n"
    )
    second = search("红色红色 red", "--json", "-k", 1)
    assert second.stderr == "no index was built yet: searching the sample images\n"
    hit = json.loads(second.stdout)["hits"][0]
    assert hit["metadata"] == {"names": {"en": "red", "zh": "red色"}, "emoji": "🟥"}
    table = search("红色红色 red", "-k", 1)
    assert "red色" in table.stdout


def test_search_command_takes_the_sample_by_name(corpus: Corpus, sample: Path, search: Callable[..., Result]):
    location.set_current_index(corpus.index)
    assert keys(search("red", "--json", "-k", 1)) == ["warm/red.png"]
    asked = search("red", "--json", "-k", 1, "--index", "sample:")
    assert keys(asked) == ["colours-000.tar#red.png"]
    assert asked.stderr == "searching the sample images (building their index first)\n"
    assert search("red", "--index", "sample:").stderr == ""
    assert locate("sample:").path == location.sample_index_path()


def test_searcher_open_falls_back_to_the_sample(sample: Path, fake_by_name: object):
    with Searcher.open() as searcher:
        hits = searcher.search("blue", k=8)
        assert len(hits) == len(COLOURS)
        assert hits[0].key == "colours-000.tar#blue.png"
        assert searcher.index.read_image(hits[0].id)[:4] == b"\x89PNG"


def test_open_sample_builds_once(sample: Path, fake_by_name: object):
    builds: set[int] = set()
    for number in range(3):
        open_sample(FakeEncoder(), on_progress=lambda _, number=number: builds.add(number)).close()
    assert builds == {0}


def test_open_sample_rebuilds_for_new_weights_or_after_damage(
    sample: Path, fake_by_name: object, monkeypatch: pytest.MonkeyPatch
):
    builds: set[int] = set()
    open_sample(FakeEncoder()).close()
    monkeypatch.setattr(encoders, "load_encoder", lambda *_, **__: FakeEncoder(name="nano", seed=1))
    open_sample(FakeEncoder(seed=1), on_progress=lambda _: builds.add(1)).close()
    (location.sample_index_path() / "manifest.json").write_text("{")
    with open_sample(FakeEncoder(seed=1), on_progress=lambda _: builds.add(2)) as index:
        assert len(index) == len(COLOURS)
    assert builds == {1, 2}


def test_open_sample_refuses_another_encoder_at_the_shared_path(
    sample: Path, fake_by_name: object, search: Callable[..., Result]
):
    other = FakeEncoder(name="other", seed=1)
    remedy = "index them for it first, with  llm2clip-index build sample: --encoder other --index PATH"
    with pytest.raises(EncoderMismatchError, match=remedy):
        Searcher.open(encoder=other)
    assert not location.sample_index_path().exists()
    Searcher.open().close()
    manifest = (location.sample_index_path() / "manifest.json").read_bytes()
    for given in (other, "other"):
        with pytest.raises(
            EncoderMismatchError, match=r"was built with encoder 'nano' .dim 16., got 'other' .dim 16."
        ):
            Searcher.open("sample:", encoder=given)
    result = search("red", "--encoder", "other")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "was built with encoder 'nano' (dim 16), got 'other' (dim 16)" in result.stderr
    assert (location.sample_index_path() / "manifest.json").read_bytes() == manifest


def test_searcher_open_uses_the_sample_indexs_encoder(
    sample: Path, fake_by_name: Callable[[str], FakeEncoder]
):
    build_index("sample:", location.sample_index_path(), encoder=fake_by_name("other"))
    with Searcher.open() as searcher:
        assert searcher.search("blue", k=1)[0].key == "colours-000.tar#blue.png"
        assert searcher.encoder.info.name == "other"


def test_open_sample_closes_an_index_before_replacing_it(
    sample: Path, fake_by_name: object, monkeypatch: pytest.MonkeyPatch
):
    opened: list[Index] = []

    def recording(path: Path) -> Index:
        opened.append(open_index(path))
        return opened[-1]

    monkeypatch.setattr(indexer, "open_index", recording, raising=False)
    open_sample(FakeEncoder()).close()
    soon = time.time() + 1
    os.utime(sample, (soon, soon))  # the sample is newer than its index
    open_sample(FakeEncoder()).close()
    with pytest.raises(EncoderMismatchError):
        open_sample(FakeEncoder(seed=1))
    assert len(opened) == 4
    for index in opened:
        with pytest.raises(IndexDamagedError, match="closed database"):
            index.items.count()


def test_open_sample_rebuilds_for_changed_images_only(sample: Path, fake_by_name: object):
    encoder, builds = FakeEncoder(), set()
    open_sample(encoder).close()
    soon = time.time() + 1
    write_coloured_shard(sample, colours={"red": "#ff0000", "orange": "#ff8000"})
    os.utime(sample, (soon, soon))
    time.sleep(1.1)
    with open_sample(encoder, on_progress=lambda _: builds.add(1)) as index:
        assert len(index) == 2
    open_sample(encoder, on_progress=lambda _: builds.add(2)).close()
    assert builds == {1}


def test_search_command_without_sample_says_what_to_do(sample: Path, search: Callable[..., Result]):
    sample.unlink()
    result = search("red")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: this installation has no sample images; "
        "build an index of your own with  llm2clip-index build FOLDER\n"
    )


def test_build_progress_shows_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    shown: list[int | str] = []

    @contextmanager
    def bar() -> Iterator[Callable[[Progress], None]]:
        yield lambda progress: shown.append(progress.done)
        shown.append("closed")

    monkeypatch.setattr(command, "progress_bar", bar)
    with command.BuildProgress("building") as progress:
        assert not progress.begun
        for done in (0, 4, 8):
            progress(Progress(stage="embedding", done=done, total=8))
        assert progress.begun
    assert shown == [0, 4, 8, "closed"]
    assert capsys.readouterr() == ("", "building\n")
