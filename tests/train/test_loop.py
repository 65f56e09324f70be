"""The training loop: every way to stop, and that a resumed run is the run that was not stopped."""

import importlib.machinery
import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from llm2clip.train.core.checkpoint import read_checkpoint
from llm2clip.train.core.ema import WeightAverage
from llm2clip.train.core.history import read_history
from llm2clip.train.core.optimizer import make_optimizer
from llm2clip.train.core.run_folder import Run, RunError
from llm2clip.train.core.schedule import learning_rate_factor
from llm2clip.train.core.stage import LoopConfig

from .toy_stage import CONFIG, Toy, run_toy

SCRIPT = Path(__file__).with_name("toy_stage.py")


def losses(folder: Path) -> list[tuple[object, ...]]:
    lines = read_history(folder / "history.jsonl")
    return [(line["kind"], line["step"], line.get("loss"), line.get("score")) for line in lines]


def weights(toy: Toy) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in toy.model.state_dict().values()]


def assert_same(one: Toy, other: Toy) -> None:
    for ours, theirs in zip(weights(one), weights(other), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbed."""
    folder, toy = tmp_path_factory.mktemp("straight"), Toy()
    outcome = run_toy(folder, toy)
    return folder, toy, outcome


def test_learns_evaluates_and_keeps_the_best(straight):
    folder, toy, outcome = straight
    found = losses(folder)
    assert [step for kind, step, *_ in found if kind == "train"] == list(range(1, 61))
    scores = {step: score for kind, step, _, score in found if kind == "evaluation"}
    assert list(scores) == [0, 9, 18, 27, 36, 45, 54, 60]
    assert scores[60] > scores[0]
    best = max(scores, key=scores.__getitem__)
    assert (outcome.exported, outcome.measures["score"]) == (best, scores[best])
    assert toy.evaluate()["score"] == scores[best]


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_killed_at_random_moments_has_the_same_losses(straight, tmp_path):
    told = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "1"], capture_output=True, text=True, timeout=200, check=False
    )
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) == 20
    assert losses(tmp_path) == losses(straight[0])
    again = Toy()
    run_toy(tmp_path, again)
    assert_same(again, straight[1])


def test_stops_at_any_step_and_resumes(straight, tmp_path):
    """Every exception inside a step leaves the last checkpoint usable, also a cut-off line in the history."""

    class Failing(Toy):
        def step(self, number, rng):
            if number == 23:
                raise OSError("the disk with the images is gone")
            return super().step(number, rng)

    with pytest.raises(OSError, match="is gone"):
        run_toy(tmp_path, Failing())
    with (tmp_path / "history.jsonl").open("a") as stream:
        stream.write('{"stage": "toy", "st')
    toy = Toy()
    run_toy(tmp_path, toy)
    assert losses(tmp_path) == losses(straight[0])
    assert_same(toy, straight[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_checkpoint_at_once(straight, tmp_path, number):
    class Signalled(Toy):
        def step(self, step, rng):
            done = super().step(step, rng)
            if step == 12:
                os.kill(os.getpid(), number)
                time.sleep(5)  # the signal ends this
            return done

    began = time.monotonic()
    with pytest.raises(BaseException) as stopped:  # noqa: PT011 (checked below)
        run_toy(tmp_path, Signalled())
    assert time.monotonic() - began < 4
    if number == signal.SIGTERM:
        assert isinstance(stopped.value, SystemExit)
        assert stopped.value.code == 143
    else:
        assert isinstance(stopped.value, KeyboardInterrupt)
        assert "run the same command again" in str(stopped.value)
    assert read_checkpoint(tmp_path / "toy.pt")["state"]["step"] == 12
    toy = Toy()
    run_toy(tmp_path, toy)
    assert losses(tmp_path) == losses(straight[0])
    assert_same(toy, straight[1])


def test_sigterm_ends_a_process_with_143_and_one_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, SCRIPT, tmp_path, "1", "0.2"], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "history.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert told.splitlines()[-1].startswith("terminated at step ")
    assert (tmp_path / "toy.pt").exists()


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path):
    with pytest.raises(RunError, match="loss of step 17 is nan, so training stops"):
        run_toy(tmp_path, Toy(poison=17))
    told = json.loads((tmp_path / "toy-not-finite.json").read_text())
    assert (told["step"], told["keys"]) == (17, ["sample-17"])
    assert read_checkpoint(tmp_path / "toy.pt")["state"]["step"] == 15
    assert torch.isfinite(torch.cat([t.flatten() for t in weights(Toy())])).all()


def test_out_of_memory_halves_the_micro_batch(straight, tmp_path, capsys):
    class Hungry(Toy):
        def step(self, number, rng):
            done = super().step(number, rng)
            if number == 5 and self.micro_batch > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return done

    toy = Hungry()
    run_toy(tmp_path, toy)
    assert toy.micro_batch == 4
    assert "out of memory: from now on 4 items are computed at a time" in capsys.readouterr().err
    assert losses(tmp_path) == losses(straight[0])  # the toy computes all at once anyway
    assert read_checkpoint(tmp_path / "toy.pt")["micro_batch"] == 4


def test_out_of_memory_with_one_item_is_an_error(tmp_path):
    class Hungry(Toy):
        def step(self, number, rng):
            raise MemoryError("no more")

    with pytest.raises(RunError, match="out of memory with 1 items at a time: no more"):
        run_toy(tmp_path, Hungry())


def test_other_runtime_errors_are_not_swallowed(tmp_path):
    class Faulty(Toy):
        def step(self, number, rng):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run_toy(tmp_path, Faulty())


def test_patience_stops_early_and_a_second_call_changes_nothing(tmp_path):
    class Flat(Toy):
        def evaluate(self):
            return {"score": 1.0}

    config = replace(CONFIG, patience=2)
    outcome = run_toy(tmp_path, Flat(), config)
    assert outcome.stopped_early
    assert (outcome.steps, outcome.exported) == (18, 0)
    before = losses(tmp_path)
    assert run_toy(tmp_path, Flat(), config) == outcome
    assert losses(tmp_path) == before


def test_another_configuration_is_refused_and_intervals_may_change(straight, tmp_path):
    run_toy(tmp_path, Toy(), replace(CONFIG, steps=8))
    with pytest.raises(RunError, match=r"another configuration: steps \(steps: 8 there, 9 here\)"):
        run_toy(tmp_path, Toy(), replace(CONFIG, steps=9))
    run_toy(tmp_path, Toy(), replace(CONFIG, steps=8, log_every=3, checkpoint_every=2))
    with pytest.raises(RunError, match="seed 5, got seed 6"):
        Run(tmp_path, seed=6)


def test_checkpoints_of_another_model_and_damaged_ones_are_refused(tmp_path):
    run_toy(tmp_path, Toy(), replace(CONFIG, steps=8))
    other = Toy()
    other.model[4] = nn.Linear(8, 2)
    with pytest.raises(RunError, match=r"another model: 4\.bias is missing, unexpected or of another shape"):
        run_toy(tmp_path, other, replace(CONFIG, steps=8))
    (tmp_path / "toy.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(RunError, match="cannot be read as a checkpoint"):
        run_toy(tmp_path, Toy(), replace(CONFIG, steps=8))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    run_toy(tmp_path, Toy(), replace(CONFIG, steps=8, decay="constant"))
    before = (tmp_path / "toy.pt").read_bytes()

    def full(content, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunError, match=r"cannot be written: .*; the one before it, if any, is still there"):
        run_toy(tmp_path, Toy(), replace(CONFIG, steps=16, decay="constant"))
    assert (tmp_path / "toy.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_muon_resumes_and_moves_matrices_by_orthogonal_updates(tmp_path):
    class Failing(Toy):
        def step(self, number, rng):
            if number == 10:
                raise KeyError(number)
            return super().step(number, rng)

    config = replace(CONFIG, steps=14)
    straight = Toy(optimizer="muon")
    run_toy(tmp_path / "straight", straight, config)
    with pytest.raises(KeyError):
        run_toy(tmp_path / "resumed", Failing(optimizer="muon"), config)
    resumed = Toy(optimizer="muon")
    run_toy(tmp_path / "resumed", resumed, config)
    assert_same(resumed, straight)

    layer = nn.Linear(6, 6)
    before = layer.weight.detach().clone()
    optimizer = make_optimizer(
        [{"params": list(layer.parameters()), "lr": 0.1, "weight_decay": 0.0}], name="muon"
    )
    layer(torch.randn(5, 6)).pow(2).sum().backward()
    optimizer.step()
    values = torch.linalg.svdvals(layer.weight.detach() - before)
    # Five Newton-Schulz iterations bring the large singular values near one another; AdamW's update has one.
    assert values[4] > 0.3 * values[0]


def test_weight_average_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = WeightAverage({"layer": layer}, decay=0.5)
    layer.weight.data.fill_(3.0)
    average.update()  # decay min(0.5, 1 / 10)
    assert average.averages["layer.weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 3)
    layer.weight.data.fill_(0.0)
    average.update()  # decay min(0.5, 2 / 11)
    assert average.averages["layer.weight"].item() == pytest.approx(2 / 11 * 2.8)
    with average.applied():
        assert layer.weight.item() == pytest.approx(2 / 11 * 2.8)
    assert layer.weight.item() == 0.0


def test_schedules_by_hand():
    assert [learning_rate_factor(n, warmup=2, total=6, decay="linear") for n in range(7)] == pytest.approx(
        [0.5, 1, 1, 0.75, 0.5, 0.25, 0]
    )
    assert {learning_rate_factor(n, warmup=0, total=6, decay="constant") for n in range(7)} == {1.0}
    assert learning_rate_factor(6, warmup=2, total=6, floor=0.1) == pytest.approx(0.1)


def test_configurations_that_cannot_work(tmp_path):
    with pytest.raises(ValueError, match="warmup must be between 0 and steps"):
        LoopConfig(steps=5, warmup=6)
    with pytest.raises(ValueError, match="patience needs keep_best"):
        LoopConfig(steps=5, patience=2)
    with pytest.raises(ValueError, match="unknown tracker 'mlflow'"):
        run_toy(tmp_path, Toy(), replace(CONFIG, trackers=("mlflow",)))


def test_tensorboard_follows_a_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_toy(tmp_path, Toy(), replace(CONFIG, steps=9, warmup=0, trackers=("tensorboard",)))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("toy/loss")]
    lines = [line for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "train"]
    assert shown == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert len(events.Scalars("toy/score")) == 2


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_follow_a_run(tmp_path, monkeypatch, name):
    """By the two functions that both have; the programs themselves want an account or a server."""
    started, sent = [], []
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.init = lambda **options: started.append(options)
    module.log = lambda values, step: sent.append((step, values))
    monkeypatch.setitem(sys.modules, name, module)
    run_toy(tmp_path / "mine", Toy(), replace(CONFIG, steps=9, warmup=0, trackers=(name,)))
    assert [(each["project"], each["name"]) for each in started] == [("llm2clip", "mine-toy")]
    assert [step for step, values in sent if "toy/loss" in values] == list(range(1, 10))
    assert [step for step, values in sent if "toy/score" in values] == [0, 9]
