"""How many files of ours a reader has to open to follow a run, and how deep its calls go: held to a budget.

Each trip runs in a process of its own, so that what others have cached does not shorten it; imports do not count.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .encoders.published_files import tiny_files as tiny_files
from .encoders.test_families import references as references
from .forked import Forked
from .forked import forked as forked

DEEPEST = 16
"""Most functions of ours that may be active at once; while a network of nano is made, six are its constructors."""

SETUP = """
import json, sys
from importlib import import_module
from pathlib import Path
from PIL import Image
from typer.testing import CliRunner
sys.path.insert(0, here)
from trips import follow
AREAS = ("common", "encoders", "indexer", "retrieval", "eval", "train")
folder = Path(folder)

def command(module, *arguments):
    app = import_module(f"llm2clip.{module}.cli").app
    def run():
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, (result.output, result.exception)
    return run

def load(name, **options):
    from llm2clip.encoders import load_encoder
    def run():
        encoder = load_encoder(name, **options)
        encoder.encode_texts(["a red disc"])
        encoder.encode_images([Image.new("RGB", (9, 9))])
    return run
"""
REPORT = """
print(json.dumps({"files": sorted(trip.files), "depth": trip.depth, "deepest": trip.deepest}))
"""
BUILD = 'command("indexer", "build", str(folder / "photos"), "--encoder", "nano", "--index", str(folder / "index"))'
CATALOGUE = """
from llm2clip.encoders.catalog import entries
entries._TABLES = (folder / "catalogue.toml",)
"""
TRIPS = {
    "build": ("", BUILD, 44),
    "search": (f"{BUILD}()", 'command("retrieval", "a red disc", "--index", str(folder / "index"))', 39),
    "load nano": ("", 'load("nano")', 15),
    "load CLIP": ("", 'load(folder / "clip")', 15),
    "load published": (CATALOGUE, 'load("tiny-openai", dtype="float32")', 23),
    "eval run": (
        "",
        'command("eval", "run", "--encoder", "nano", "--data", str(folder / "photos"), "--out", str(folder / "out"))',
        42,
    ),
}
"""Name -> what comes before, what is followed, and the most files that it may enter.

Nano is two networks of different kinds: a build enters the images' one, a search the texts'. A search also folds
copies and tells how sure it is, with scores that are calibrated the first time.
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, references, tiny_files):
    """Eight captioned images, a random CLIP, and tiny models in the published layout."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("trips")
    (folder / "photos").mkdir()
    for number in range(8):
        Image.new("RGB", (64, 64), (number * 30, 100, 50)).save(folder / "photos" / f"{number}.png")
        (folder / "photos" / f"{number}.txt").write_text(f"colour number {number}")
    (folder / "clip").symlink_to(references["clip"].folder)
    (folder / "models").symlink_to(tiny_files / "models")
    (folder / "catalogue.toml").symlink_to(tiny_files / "catalogue.toml")
    return folder


@pytest.mark.parametrize("name", TRIPS)
def test_trip_keeps_to_its_budget(name: str, folder: Path, forked: Forked, monkeypatch: pytest.MonkeyPatch):
    before, followed, budget = TRIPS[name]
    monkeypatch.setenv("LLM2CLIP_HOME", str(folder))
    places = f"here, folder = {str(Path(__file__).parent)!r}, {str(folder)!r}"
    program = f"{places}\n{SETUP}\n{before}\ntrip = follow({followed}, AREAS)\n{REPORT}"
    status, output = forked.run(program, folder=folder, environment=os.environ)
    assert status == 0, output
    trip = json.loads(output.splitlines()[-1])
    assert len(trip["files"]) <= budget, "\n".join(trip["files"])
    assert trip["depth"] <= DEEPEST, "\n".join(trip["deepest"])
