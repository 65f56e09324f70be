"""What ``make eval`` runs, on tiny sets and with one random encoder: from nothing to the page, and again from disk."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from llm2clip.eval.commands import make_eval
from llm2clip.eval.nano_report import controls
from llm2clip.eval.results.validation import read_results


@pytest.fixture
def made(tmp_path, gallery_tar, scenes_tar):
    gallery_tar("openmoji.tar", "openmoji")
    scenes_tar("scenes.tar")
    return tmp_path


def test_make_eval_runs_to_the_page_and_again_from_disk(made, tmp_path, tars, monkeypatch):
    monkeypatch.setattr(controls, "FAMILIES", ("clip",))
    own = {str(n): (tars.colour((n, 0, 0)), {"caption": f"red {n}"}) for n in range(3)}
    tars.write(tmp_path / "own.tar", own)
    command = ["--out", str(tmp_path / "out"), "--made", str(made), "--data", f"mine={tmp_path / 'own.tar'}"]
    done = CliRunner().invoke(make_eval.app, command)
    assert done.exit_code == 0, done.output
    found = read_results([tmp_path / "out" / "results"])
    assert {one.encoder.label for one in found} == {"nano", "nano, blocks off", "random clip"}
    assert {one.set.id for one in found} == {"emoji:en", "emoji:de", "scenes:en", "mine"}
    for name in ("leaderboard.html", "leaderboard.md", "leaderboard.csv"):
        assert "random clip" in (tmp_path / "out" / name).read_text(encoding="utf-8")
    again = CliRunner().invoke(make_eval.app, command)
    assert again.exit_code == 0, again.output
    cost = [one.cost for one in read_results([tmp_path / "out" / "results"])]
    assert all(one and one.images_encoded == one.texts_encoded == 0 for one in cost)


def test_candidates_are_nano_controls_and_random_encoders(tmp_path):
    labels = [one.label for one in make_eval.candidates(tmp_path)]
    assert labels == ["nano", "nano, blocks off", *(f"random {name}" for name in controls.FAMILIES)]


def test_make_eval_names_the_command_for_missing_sets(tmp_path):
    done = CliRunner().invoke(make_eval.app, ["--out", str(tmp_path / "out"), "--made", str(tmp_path)])
    assert done.exit_code == 1
    assert "openmoji.tar and scenes.tar not found" in done.stderr
    assert f"llm2clip-train data --out {tmp_path}" in done.stderr
