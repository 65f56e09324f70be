"""Power losses and failing steps while an index is changed: a short run of ``faults.py`` for each change."""

import random

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index

from . import faults
from .disk import Recorder, watched
from .faults import CHANGES, failing_exports, failing_steps, power_losses
from .material import numbered, put

FINE = {"answered", "refused"}


@pytest.fixture(params=list(CHANGES))
def one_change(request, monkeypatch):
    monkeypatch.setattr(faults, "CHANGES", {request.param: CHANGES[request.param]})


def test_power_loss_leaves_the_state_before_or_after(tmp_path, one_change):
    chosen = random.Random(7)
    outcomes = [each for _ in range(2) for each in power_losses(tmp_path, chosen)]
    assert set(outcomes) == {"answered"}
    assert len(outcomes) == 16


def test_failing_step_leaves_the_state_before_or_after(tmp_path, one_change):
    chosen = random.Random(8)
    assert {each for _ in range(4) for each in failing_steps(tmp_path, chosen)} <= FINE


def test_failing_export_leaves_whole_files_or_none(tmp_path):
    chosen = random.Random(9)
    assert {each for _ in range(6) for each in failing_exports(tmp_path, chosen)} <= FINE


def test_recorder_sees_the_writes_of_python_and_of_sqlite(tmp_path):
    """What was flushed is all that must be there: before the commit no manifest, after it every file of the index."""
    put(tmp_path / "photos", numbered(range(3)))
    (tmp_path / "i").mkdir()
    recorder = Recorder(tmp_path / "i")
    with watched(recorder):
        build_index(tmp_path / "photos", tmp_path / "i", encoder=FakeEncoder())
    steps = [moment.step for moment in recorder.moments]
    assert steps.count("rename manifest.json.tmp") == 1
    assert {"write items-00001.db", "sync items-00001.db", "sync vectors-00001-00000.npy"} <= set(steps)
    commit = steps.index("rename manifest.json.tmp")
    lost = [recorder.moments[place].left(random.Random(3)) for place in range(commit)]
    assert not any("manifest.json" in files for files in lost)
    end = recorder.note("end")
    for seed in range(20):
        left = end.left(random.Random(seed))
        for name in ("manifest.json", "items-00001.db", "vectors-00001-00000.npy"):
            assert left[name] == (tmp_path / "i" / name).read_bytes()
