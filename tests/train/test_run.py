import json
import math

import pytest
import torch
from torch import nn

from llm2clip.train.core.trainer import LoopConfig, Run, RunError, Trainee, learning_rate_factor, train_loop


def quadratic(folder, *, stop_at=None, steps=12):
    run = Run(folder, seed=3)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    trainee = Trainee({"model": model}, torch.optim.AdamW(model.parameters(), lr=0.05))

    def step(rng, number):
        if number == stop_at:
            raise KeyboardInterrupt
        inputs = torch.from_numpy(rng.standard_normal((8, 4))).float()
        return {"loss": (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()}

    config = LoopConfig(steps=steps, warmup=2, checkpoint_every=3, evaluate_every=6)
    train_loop(run, "fit", trainee, step, config=config, evaluate=lambda: {"bias": model.bias.item()})
    return run, model


def test_learning_rate_factor_by_hand():
    factors = [learning_rate_factor(step, warmup=2, total=6) for step in range(7)]
    cosines = [0.5 * (1 + math.cos(math.pi * quarter / 4)) for quarter in range(5)]
    assert factors == pytest.approx([0.5, 1.0, *cosines])
    assert learning_rate_factor(6, warmup=2, total=6, floor=0.1) == pytest.approx(0.1)


def test_train_loop_resumed_equals_uninterrupted(tmp_path):
    _, straight = quadratic(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        quadratic(tmp_path / "resumed", stop_at=8)
    run, resumed = quadratic(tmp_path / "resumed")
    torch.testing.assert_close(resumed.weight, straight.weight, rtol=0, atol=0)
    assert run.done("fit")
    assert [line["step"] for line in run.story()["history"]] == [6, 12]


def test_train_loop_loads_a_finished_stage(tmp_path):
    _, first = quadratic(tmp_path)
    _, again = quadratic(tmp_path, stop_at=0)
    torch.testing.assert_close(again.weight, first.weight, rtol=0, atol=0)


def test_train_loop_refuses_another_configuration(tmp_path):
    quadratic(tmp_path)
    with pytest.raises(RunError, match=r"stage 'fit' with another configuration \(differs in \['steps'\]\)"):
        quadratic(tmp_path, steps=13)
    with pytest.raises(RunError, match="seed 3, got seed 4"):
        Run(tmp_path, seed=4)


def test_run_records_what_made_it(tmp_path):
    run, _ = quadratic(tmp_path)
    run.describe(LoopConfig(steps=7))
    saved = json.loads((run.folder / "run.json").read_text())
    assert (saved["seed"], saved["recipe"]["steps"]) == (3, 7)
    assert saved["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert saved["stages"]["fit"]["config"]["steps"] == 12


def test_train_loop_stops_on_a_diverging_loss(tmp_path):
    run = Run(tmp_path, seed=1)
    model = nn.Linear(1, 1)
    trainee = Trainee({"model": model}, torch.optim.AdamW(model.parameters()))

    def step(rng, number):
        return {"loss": model.weight.sum() * math.nan}

    with pytest.raises(RunError, match="diverged at step 0: loss is nan"):
        train_loop(run, "bad", trainee, step, config=LoopConfig(steps=1))
