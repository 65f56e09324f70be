"""The demonstration on a stand-in for the sample, and on the real one with the real encoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm2clip import indexer
from llm2clip.encoders import FakeEncoder
from llm2clip.indexer.containers import tar as shards
from llm2clip.indexer.core import index_paths as location
from llm2clip.retrieval import Searcher, demo

from .conftest import image, write_shard

LONG = "a red thing beside a blue thing " * 20


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_by_name: object) -> Path:
    """A sample of an image that a paragraph describes, the image query, and another one."""
    folder = tmp_path / "sample"
    folder.mkdir()
    members: dict[str, bytes] = {}
    for name, colour in (("described", "#800080"), ("flower", "yellow"), ("other", "red")):
        members[f"{name}.png"] = image(colour)
        members[f"{name}.json"] = json.dumps({"caption": name, "kind": "photograph"}).encode()
    write_shard(folder / "sample-000.tar", members)
    for module in (location, shards):
        monkeypatch.setattr(module, "sample_folder", lambda: folder)
    monkeypatch.setattr("llm2clip.encoders.load_encoder", lambda *_, **__: FakeEncoder(max_text_tokens=200))
    monkeypatch.setattr(demo, "PARAGRAPH", LONG)
    monkeypatch.setattr(demo, "PARAGRAPH_IMAGE", "described.png")
    monkeypatch.setattr(demo, "IMAGE_QUERY", "flower.png")
    return folder


def test_demo_searches_in_many_languages_and_by_image(stand_in: Path, tmp_path: Path):
    result = CliRunner().invoke(demo.app, ["--out", str(tmp_path / "out")], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "building the index of the sample images\n"
    for _, text, meaning in demo.QUERIES:
        assert text in result.stdout
        assert meaning is None or meaning in " ".join(result.stdout.split())
    assert "140 tokens, CLIP reads 77; it describes described.png" in " ".join(result.stdout.split())
    assert "images like flower.png" in result.stdout
    assert f"The same with images: {tmp_path / 'out' / 'gallery.html'}" in result.stdout
    assert (tmp_path / "out" / "gallery.html").read_text("utf-8").count("<section") == len(demo.QUERIES) + 2


def test_demo_run_twice_builds_once(stand_in: Path, tmp_path: Path):
    arguments = ["--out", str(tmp_path / "out"), "--index", str(tmp_path / "demo.index")]
    first, second = (CliRunner().invoke(demo.app, arguments) for _ in range(2))
    assert "indexed in" in first.stdout
    assert "their index was up to date" in second.stdout
    assert second.stderr == ""


def test_demo_finds_the_query_image_and_the_described_one(stand_in: Path, tmp_path: Path):
    answers = demo.run(tmp_path / "out")
    assert answers[-1].hits[0].key == "sample-000.tar#flower.png"
    assert answers[-2].hits[0].key == "sample-000.tar#described.png"


def test_demo_reports_a_sample_without_its_images(stand_in: Path, tmp_path: Path):
    write_shard(stand_in / "sample-000.tar", {"only.png": image("red")})
    result = CliRunner().invoke(demo.app, ["--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: the sample corpus lacks the images")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python of its own with our search beside it, and a current folder above."""
    folder = tmp_path / "project" / ".venv" / "bin"
    folder.mkdir(parents=True)
    script = folder / "llm2clip-search"
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    return folder


@pytest.mark.skipif(os.name != "posix", reason="makes a program by its permissions")
def test_program_is_printed_as_it_must_be_typed(environment: Path, monkeypatch: pytest.MonkeyPatch):
    assert demo.program("llm2clip-search") == ".venv/bin/llm2clip-search"
    assert '\n  .venv/bin/llm2clip-search "a red flower"   ' in demo._next()
    monkeypatch.chdir("/")
    assert demo.program("llm2clip-search") == str(environment / "llm2clip-search")[1:]
    monkeypatch.chdir("/usr/bin")
    assert demo.program("llm2clip-search") == str(environment / "llm2clip-search")
    monkeypatch.setenv("PATH", f"/usr/bin{os.pathsep}{environment}")
    assert demo.program("llm2clip-search") == "llm2clip-search"
    assert demo.program("llm2clip-index") == "llm2clip-index"


def test_readme_states_the_number_of_demo_queries():
    searches = len(demo.QUERIES) + 2
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"index of the sample images, {searches} searches, an HTML gallery" in readme


ANSWERS = {
    "en": "es-sea10-sfiera es-myrabella5",
    "zh": "es-dmottl0 es-dmottl2 es-dmottl3 es-dmottl4 es-dmottl5 es-mountain16-striker es-snow10-sfiera",
    "es": "sk-coffee",
    "ar": "sk-chelsea drawing-1f408",
    "ja": "pa-cincinnati-bridge lo-bridge-by-sander-klootwijk",
    "hi": "es-beach11-harro",
    "de": "lo-friends-by-aitzol-berasategi",
    "fr": "pa-european-honey-bee",
    "ru": "es-lava0 es-lava7-sfiera es-mountain21-harro",
    "ko": "st-m31 st-m104 st-n1300 st-n4676 sk-hubble-deep-field",
    "sw": "es-dmottl0 es-dmottl2 es-dmottl3 es-dmottl5 es-mountain16-striker",
}
"""Images that a person would call an answer to each query of the demonstration."""
RUN = [sys.executable, "-m", "llm2clip.retrieval.demo"]


@dataclass(frozen=True)
class FirstRun:
    """The demonstration as a stranger starts it: the shipped model, the shipped images, no index yet."""

    index: Path
    output: str
    page: str


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    folder = tmp_path_factory.mktemp("demo")
    command = [*RUN, "--out", str(folder / "out"), "--index", str(folder / "index")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    page = (folder / "out" / "gallery.html").read_text("utf-8")
    return FirstRun(folder / "index", done.stdout, page)


@pytest.fixture(scope="module")
def searcher(first_run: FirstRun) -> Iterator[Searcher]:
    with Searcher.open(first_run.index, encoder="nano") as searcher:
        yield searcher


def name_of(key: str) -> str:
    return key.rpartition("#")[2].removesuffix(".webp")


def test_demo_indexes_and_shows_everything(first_run: FirstRun):
    assert "sample images, indexed in" in first_run.output
    assert first_run.page.count("<section") == len(demo.QUERIES) + 2
    assert first_run.page.count("<img ") == 5 * (len(demo.QUERIES) + 2) + 1
    assert "no longer be read" not in first_run.page


def test_nano_answers_most_demo_queries(searcher: Searcher):
    asked = [(language, text) for language, text, _ in demo.QUERIES]
    assert {language for language, _ in asked} == set(ANSWERS)
    found = {
        language: {name_of(hit.key) for hit in hits}
        for (language, _), hits in zip(asked, searcher.search([text for _, text in asked], k=5), strict=True)
    }
    answered = {language for language, names in found.items() if names & set(ANSWERS[language].split())}
    assert len(answered) >= 8, {language: found[language] for language in found.keys() - answered}


def test_a_paragraph_finds_its_photograph_and_its_first_sentence_does_not(searcher: Searcher):
    assert len(demo.PARAGRAPH.split()) >= 80
    first = demo.PARAGRAPH.partition(". ")[0] + "."
    whole, beginning = searcher.search([demo.PARAGRAPH, first], k=180)
    ranks = [[name_of(hit.key) for hit in hits].index("sk-chelsea") for hits in (whole, beginning)]
    assert ranks[0] == 0 < ranks[1]


def test_nano_finds_photographs_by_their_captions(searcher: Searcher):
    records = [record for record in indexer.open_corpus(location.SAMPLE).records() if record.metadata]
    photographs = [record for record in records if record.metadata["kind"] == "photograph"]
    assert len(photographs) >= 100
    asked = [(language, record) for language in ("en", "zh", "hi") for record in photographs[::4]]
    texts = [record.metadata["captions"][language] for language, record in asked]
    found = searcher.search(texts, k=5)
    right = sum(
        record.key in {hit.key for hit in hits} for (_, record), hits in zip(asked, found, strict=True)
    )
    # The model card says how often; this is the floor below which something is broken.
    assert right / len(asked) >= 0.35
