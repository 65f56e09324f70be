"""Default paths of indexes and the data home."""

import os
import sys
from pathlib import Path

import pytest

from llm2clip.indexer.core import index_paths as location


def test_data_home_is_the_variable(data_home):
    assert location.data_home() == data_home


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="where Linux keeps data")
def test_data_home_of_linux(monkeypatch, tmp_path):
    monkeypatch.delenv("LLM2CLIP_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert location.data_home() == tmp_path / ".local" / "share" / "llm2clip"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert location.data_home() == Path("/data/llm2clip")
    monkeypatch.setenv("XDG_DATA_HOME", "not/from/the/root")
    assert location.data_home() == tmp_path / ".local" / "share" / "llm2clip"
    monkeypatch.setenv("LLM2CLIP_HOME", "~/mine")
    assert location.data_home() == tmp_path / "mine"


def test_default_index_path_differs_by_corpus(data_home, tmp_path, monkeypatch):
    (tmp_path / "a" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    place = location.default_index_path("photos")
    assert place.parent == data_home / "indexes"
    assert place.name.startswith("photos-")
    for same in (tmp_path / "a" / "photos", "./photos/"):
        assert location.default_index_path(same) == place
    assert place != location.default_index_path(tmp_path / "b" / "photos")


@pytest.mark.parametrize("name", ["北京", "a b!c", "...", "x" * 200, "shards/{00..03}.tar", "/"])
def test_default_index_path_is_a_portable_name(name):
    place = location.default_index_path(name).name
    assert place.endswith(".index")
    assert len(place) < 100
    assert not set(place) & set('/\\:*?"<>|{} ')
    assert not place.startswith((".", "-"))


def test_default_index_path_of_the_sample(data_home):
    assert location.default_index_path("sample:") == location.sample_index_path()
    assert location.sample_index_path() == data_home / "indexes" / "sample.index"


def test_set_current_index_is_remembered(tmp_path, data_home, monkeypatch):
    assert location.current_index() is None
    monkeypatch.chdir(tmp_path)
    location.set_current_index("one.index")
    assert location.current_index() == tmp_path / "one.index"
    location.set_current_index(tmp_path / "two.index")
    assert location.current_index() == tmp_path / "two.index"
    assert os.listdir(data_home) == ["current.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"index": 3}', "\0"])
def test_current_index_ignores_a_damaged_pointer(data_home, content):
    (data_home / "current.json").write_text(content)
    assert location.current_index() is None
