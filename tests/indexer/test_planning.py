"""What ``--ram``, ``--recall`` and ``--p95-ms`` become."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import IndexerError, build_index, cli, open_index
from llm2clip.indexer.commands import build as command
from llm2clip.indexer.commands.build import UNPLANNED_ROWS, budget_of, caption_queries, make_planner
from llm2clip.indexer.planner.plan_index import BudgetPlanner
from llm2clip.indexer.storage.vector_segments import Vectors

from .material import clustered, colour_of, encoded, numbered, put


class Counting:
    """Encodes a caption as its length; counts what it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode_texts(self, texts: Sequence[str], /) -> np.ndarray:
        self.seen += texts
        return np.array([[len(text)] for text in texts], dtype=np.float32)


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    folder = put(tmp_path / "photos", numbered(range(12), name="{:02d}.png"))
    for number in range(12):
        if number % 3:
            (folder / f"{number:02d}.txt").write_text("same" if number == 1 else "x" * number)
    return folder


def test_caption_queries_encodes_each_caption_once(captioned, tmp_path):
    build_index(captioned, tmp_path / "i", encoder=FakeEncoder())
    encoder = Counting()
    queries = caption_queries(tmp_path / "i", encoder)
    assert queries is not None
    assert queries.ravel().tolist() == [float(len(text)) for text in encoder.seen]
    assert sorted(encoder.seen) == sorted(["same", *("x" * n for n in (2, 4, 5, 7, 8, 10, 11))])


def test_caption_queries_gives_none_without_captions(photos, tmp_path):
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    encoder = Counting()
    assert caption_queries(tmp_path / "i", encoder) is None
    assert encoder.seen == []


def test_make_planner_tries_nothing_for_a_small_index_without_a_budget(tmp_path, monkeypatch):
    planned = []

    def planner(self: BudgetPlanner, path: Path, vectors: Vectors) -> dict[str, object]:
        planned.append(self)
        return {}

    monkeypatch.setattr(BudgetPlanner, "__call__", planner)
    rows = Vectors([clustered(1_000, 16, seed=0).astype(np.float16)], dim=16)
    usual = make_planner(tmp_path, Counting(), budget=None, say=print)
    assert usual(tmp_path / "ann", rows) == {"kind": "flat-fp16-ip"}
    assert planned == []
    monkeypatch.setattr(command, "UNPLANNED_ROWS", 999)
    usual(tmp_path / "ann", rows)
    make_planner(tmp_path, Counting(), budget=budget_of(ram="4GB", recall=None, p95_ms=10.0), say=print)(
        tmp_path / "ann", rows
    )
    one, other = (each.budget for each in planned)
    assert (one.recall, one.p95_ms) == (0.95, 50.0)
    assert (other.ram, other.recall, other.p95_ms) == (4 * 10**9, 0.95, 10.0)
    assert UNPLANNED_ROWS == 50_000
    with pytest.raises(IndexerError, match="expected a memory size like 4GB or 500MB, got 'lots'"):
        budget_of(ram="lots", recall=None, p95_ms=None)


def test_build_prints_and_keeps_the_plan_of_a_budget(captioned, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load", lambda *_, **__: FakeEncoder())
    place = tmp_path / "index"
    common = ["build", str(captioned), "--index", str(place), "--encoder", "nano"]
    done = CliRunner().invoke(cli.app, [*common, "--ram", "1GB", "--p95-ms", "10000", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["items"] == 12
    assert "flat-fp16-ip over 12 x " in done.stderr
    assert "measured:" in done.stderr
    assert "(8 text queries)" in done.stderr
    with open_index(place) as index:
        assert index.manifest.ann.plan["budget"] == {"ram": 10**9, "recall": 0.95, "p95_ms": 10_000.0}
        assert any("8 text queries" in step for step in index.explain())
    with open_index(place) as index:
        rows = index.manifest.rows
    again = CliRunner().invoke(cli.app, [*common, "--p95-ms", "9000", "--json"])
    assert (again.exit_code, json.loads(again.stdout)["embedded"]) == (0, 0)
    assert "measured:" in again.stderr
    with open_index(place) as index:
        assert index.manifest.ann.plan["budget"]["p95_ms"] == 9_000.0
        assert (index.manifest.rows, index.verify().ok) == (rows, True)
    wrong = CliRunner().invoke(cli.app, [*common, "--overwrite", "--recall", "95"])
    assert (wrong.exit_code, "the recall must be above 0 and at most 1, got 95" in wrong.stderr) == (1, True)


def test_build_refuses_a_budget_that_cannot_fit_first(captioned, tmp_path, monkeypatch):
    encoder = FakeEncoder()
    monkeypatch.setattr(command, "load", lambda *_, **__: encoder)
    common = ["build", str(captioned), "--index", str(tmp_path / "index"), "--encoder", "nano"]
    done = CliRunner().invoke(cli.app, [*common, "--ram", "20"])
    assert done.exit_code == 1
    assert "12 vectors of dimension 16 cannot be searched within 20 bytes" in done.stderr
    assert encoder.image_batches == []
    assert not (tmp_path / "index").exists()


def test_build_refuses_an_index_of_another_encoder_before_loading(captioned, tmp_path, monkeypatch):
    loaded: list[str] = []

    def load(name: str, **_: object) -> FakeEncoder:
        loaded.append(name)
        return FakeEncoder()

    monkeypatch.setattr(command, "load", load)
    common = ["build", str(captioned), "--index", str(tmp_path / "index"), "--encoder"]
    assert CliRunner().invoke(cli.app, [*common, "nano"]).exit_code == 0
    other = CliRunner().invoke(cli.app, [*common, "clip-vit-b-32"])
    assert (other.exit_code, loaded) == (1, ["nano"])
    assert "was built with the encoder nano, got clip-vit-b-32: build with the first" in other.stderr


def test_build_passes_device_and_dtype_on(captioned, tmp_path, monkeypatch):
    loaded: list[tuple[str, str, str]] = []
    planned: list[str] = []

    def load(name: str, *, device: str, dtype: str) -> FakeEncoder:
        loaded.append((name, device, dtype))
        return FakeEncoder()

    def planner(*args: object, device: str, **given: object) -> object:
        planned.append(device)
        return make_planner(*args, device=device, **given)

    monkeypatch.setattr("llm2clip.encoders.load_encoder", load, raising=False)
    monkeypatch.setattr(command, "make_planner", planner)
    common = ["build", str(captioned), "--index", str(tmp_path / "index"), "--encoder", "nano"]
    done = CliRunner().invoke(cli.app, [*common, "--device", "cuda:1", "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.stderr
    assert (loaded, planned) == ([("nano", "cuda:1", "bfloat16")], ["cuda:1"])
    (captioned / "new.png").write_bytes(encoded(colour_of(77)))
    done = CliRunner().invoke(cli.app, ["update", "--index", str(tmp_path / "index"), "--dtype", "float16"])
    assert (done.exit_code, loaded[1:]) == (0, [("nano", "auto", "float16")])
    for option in ("--device", "--dtype"):
        both = CliRunner().invoke(cli.app, ["build", "--from", "x", "--encoder", "nano", option, "float32"])
        assert (both.exit_code, "remove --device and --dtype" in both.stderr) == (2, True)
