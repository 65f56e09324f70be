"""What ``make eval`` runs, on tiny sets and with one random encoder: from nothing to the page, and again from disk."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from llm2clip.encoders import FakeEncoder
from llm2clip.eval.commands import make_eval
from llm2clip.eval.results.validation import read_results
from llm2clip.eval.runner import controls
from llm2clip.eval.runner.run import Candidate


@pytest.fixture
def made(tmp_path, tars, monkeypatch):
    """A sample of six images with captions in two languages, in the place of the shipped one."""
    captions = {str(n): {"captions": {"en": f"blue {n}", "zh": f"蓝 {n}"}} for n in range(6)}
    (tmp_path / "sample").mkdir()
    tars.write(
        tmp_path / "sample" / "s.tar", {k: (tars.colour((0, 0, 40 * int(k))), v) for k, v in captions.items()}
    )
    monkeypatch.setattr("llm2clip.indexer.core.index_paths.sample_folder", lambda: tmp_path / "sample")
    return tmp_path


def test_make_eval_runs_to_the_page_and_again_from_disk(made, tmp_path, tars, monkeypatch):
    monkeypatch.setattr(controls, "FAMILIES", ("clip",))
    shipped = [Candidate(label="nano", open=FakeEncoder)]
    whole = make_eval.candidates
    monkeypatch.setattr(make_eval, "candidates", lambda folder: [*shipped, *list(whole(folder))[-1:]])
    own = {str(n): (tars.colour((n, 0, 0)), {"caption": f"red {n}"}) for n in range(3)}
    tars.write(tmp_path / "own.tar", own)
    command = ["--out", str(tmp_path / "out"), "--data", f"mine={tmp_path / 'own.tar'}"]
    done = CliRunner().invoke(make_eval.app, command)
    assert done.exit_code == 0, done.output
    found = read_results([tmp_path / "out" / "results"])
    assert {one.encoder.label for one in found} == {"nano", "random clip"}
    assert {one.set.id for one in found} == {"sample:en", "sample:zh", "mine"}
    for name in ("leaderboard.html", "leaderboard.md", "leaderboard.csv"):
        assert "random clip" in (tmp_path / "out" / name).read_text(encoding="utf-8")
    again = CliRunner().invoke(make_eval.app, command)
    assert again.exit_code == 0, again.output
    cost = [one.cost for one in read_results([tmp_path / "out" / "results"])]
    assert all(one and one.images_encoded == one.texts_encoded == 0 for one in cost)


def test_candidates_are_nano_controls_and_random_encoders(tmp_path):
    labels = [one.label for one in make_eval.candidates(tmp_path)]
    assert labels[:3] == ["nano", "nano, no-cc", "nano, english-words"]
    assert labels[3:] == [f"random {name}" for name in controls.FAMILIES]


def test_variants_keep_the_first_blocks_only():
    import torch

    tensors = {f"language_model.encoder.layer.{n}.output.dense.weight": torch.ones(2, 2) for n in range(3)}
    tensors |= {f"language_model.encoder.layer.{n}.output.LayerNorm.weight": torch.ones(2) for n in range(3)}
    tensors["vision.centre"] = torch.ones(3)
    shorter = controls.cut_blocks(tensors, "no-cc", keep=2)
    assert sorted(shorter) == sorted(name for name in tensors if ".2." not in name)
    assert all(tensor.min() == 1 for tensor in shorter.values())
    words = controls.cut_blocks(tensors, "english-words", keep=1)
    assert words["language_model.encoder.layer.0.output.dense.weight"].abs().max() == 0
    assert words["language_model.encoder.layer.0.output.LayerNorm.weight"].min() == 1
    assert len(words) == 3


def test_variants_of_nano_load_and_differ(tmp_path):
    vectors = {
        name: controls.nano_control(name, tmp_path / name).encode_texts(["a dog"])
        for name in controls.CONTROLS
    }
    assert abs(vectors["no-cc"] - vectors["english-words"]).max() > 0.01
