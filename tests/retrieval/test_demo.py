"""The demonstration on a stand-in for the sample, and on the real one with the real encoder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm2clip import indexer
from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import location, records, shards
from llm2clip.retrieval import demo

from .conftest import picture, write_shard

LONG = "a red thing beside a blue thing " * 20


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_by_name: object) -> Path:
    """A sample of a long-necked picture and two scenes, one of them with a long caption."""
    folder = tmp_path / "sample"
    folder.mkdir()
    descriptions = {
        "scene-short": {"caption": "short", "kind": "scene", "emoji": "🦒🍎"},
        "scene-long": {"caption": LONG, "kind": "scene", "emoji": "🦒🍎"},
        "giraffe": {"caption": "giraffe", "kind": "emoji", "emoji": "🦒", "names": {"zh": "长颈鹿"}},
    }
    members: dict[str, bytes] = {}
    for (name, description), colour in zip(descriptions.items(), ("red", "#800080", "yellow"), strict=True):
        members[f"{name}.png"] = picture(colour)
        members[f"{name}.json"] = json.dumps(description).encode()
    write_shard(folder / "sample-000.tar", members)
    for module in (location, shards, records):
        monkeypatch.setattr(module, "sample_folder", lambda: folder)
    monkeypatch.setattr("llm2clip.encoders.load_encoder", lambda *_, **__: FakeEncoder(max_text_tokens=200))
    return folder


def test_the_demo_searches_in_many_languages_and_by_picture(stand_in: Path, tmp_path: Path):
    result = CliRunner().invoke(demo.app, ["--out", str(tmp_path / "out")], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "building the index of the sample pictures\n"
    for _, text, meaning in demo.QUERIES:
        assert text in result.stdout
        assert meaning is None or meaning in " ".join(result.stdout.split())
    assert "140 tokens, CLIP reads 77; it describes scene-long.png" in " ".join(result.stdout.split())
    assert "pictures like giraffe.png" in result.stdout
    assert f"The same with pictures: {tmp_path / 'out' / 'gallery.html'}" in result.stdout
    assert (tmp_path / "out" / "gallery.html").read_text("utf-8").count("<section") == len(demo.QUERIES) + 2


def test_the_second_demo_reuses_the_index(stand_in: Path, tmp_path: Path):
    arguments = ["--out", str(tmp_path / "out"), "--index", str(tmp_path / "demo.index")]
    first, second = (CliRunner().invoke(demo.app, arguments) for _ in range(2))
    assert "indexed in" in first.stdout
    assert "their index was up to date" in second.stdout
    assert second.stderr == ""


def test_the_picture_finds_itself_and_the_scene_its_caption(stand_in: Path, tmp_path: Path):
    answers = demo.run(tmp_path / "out")
    assert answers[-1].hits[0].key == "sample-000.tar#giraffe.png"
    assert answers[-2].hits[0].key == "sample-000.tar#scene-long.png"


def test_a_sample_without_the_wanted_pictures_is_one_line(stand_in: Path, tmp_path: Path):
    write_shard(stand_in / "sample-000.tar", {"only.png": picture("red")})
    result = CliRunner().invoke(demo.app, ["--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: the sample corpus lacks the pictures")


def test_the_languages_of_the_issue_are_among_the_queries():
    assert {"en", "zh", "es", "ar", "ja", "hi"} <= {language for language, _, _ in demo.QUERIES}
    assert len(demo.QUERIES) >= 10


shipped = pytest.mark.skipif(
    not (Path(indexer.__path__[0]).parent / "encoders" / "nano" / "model.safetensors").is_file()
    or not location.sample_shards(),
    reason="this checkout has no shipped model or sample pictures yet",
)


@shipped
def test_the_shipped_model_finds_what_is_asked_in_every_language(tmp_path: Path):
    command = [sys.executable, "-m", "llm2clip.retrieval.demo", "--out", str(tmp_path / "out")]
    first = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert first.returncode == 0, first.stderr
    began = time.monotonic()
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 0, second.stderr
    assert time.monotonic() - began < 30
    assert "their index was up to date" in second.stdout
    assert "giraffe" in second.stdout
    page = (tmp_path / "out" / "gallery.html").read_text("utf-8")
    assert page.count("<section") == len(demo.QUERIES) + 2
    assert page.count("<img ") == 5 * (len(demo.QUERIES) + 2) + 1
    assert "no longer be read" not in page
