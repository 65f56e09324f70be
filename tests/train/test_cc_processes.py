"""Stage 1 in two processes over gloo, whole and sharded: losses and weights of one process."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from llm2clip.train.cc.pipeline import run_cc
from llm2clip.train.recipe_files import load_recipe

from .text_material import caption_file, llama_folder

PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
from llm2clip.train.cc.objectives import ContrastStage
from llm2clip.train.cc.pipeline import run_cc
from llm2clip.train.core.distributed import is_sharded
from llm2clip.train.recipe_files import load_recipe
torch.set_num_threads(1)
step, stop = ContrastStage.step, int(sys.argv[2])
def stopped(stage, number, rng):
    assert {is_sharded(p) for p in stage.model.module.parameters()} == {stage.model.settings.sharded}
    if number == stop and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return step(stage, number, rng)
ContrastStage.step = stopped
run_cc(load_recipe("debug", settings=sys.argv[3:]).cc, Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    model, captions = llama_folder(folder / "model"), caption_file(folder / "captions.jsonl")
    # 25 texts: shares of different sizes, in micro-batches of 4.
    return [
        f"cc.model={model}",
        f"cc.data={json.dumps([str(captions)])}",
        "cc.tune.parts=all",
        "cc.tune.lr=1e-3",
        "cc.batch.size=9",
        "cc.batch.random_negatives=true",
        "cc.loop.steps=30",
        "cc.loop.checkpoint_every=30",
        "cc.loop.evaluate_every=10",
        "cc.loop.ema=0.9",
    ]


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """Losses and weights of one process."""
    folder = tmp_path_factory.mktemp("alone")
    run_cc(load_recipe("debug", settings=settings).cc, folder)
    return result(folder)


def run_in_two(folder, settings, *, stop=-1):
    port = str(29500 + os.getpid() % 2000)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", PROGRAM, str(folder), str(stop), *settings]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=250)[1] for process in processes]
    return [process.returncode for process in processes], "\n".join(said)


def result(folder):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return losses, load_file(folder / "model" / "model.safetensors")


def assert_same(found, expected):
    (losses, weights), (wanted, others) = found, expected
    assert len(wanted) == 30
    assert losses == pytest.approx(wanted, rel=1e-5)
    for name, tensor in others.items():
        assert (tensor - weights[name]).abs().max() < 1e-4 * tensor.abs().max(), name


def test_two_processes_have_the_losses_and_weights_of_one(settings, alone, tmp_path):
    codes, said = run_in_two(tmp_path, settings)
    assert codes == [0, 0], said
    assert_same(result(tmp_path), alone)


def test_two_processes_with_parts_of_the_weights_have_those_of_one_also_when_resumed(
    settings, alone, tmp_path
):
    sharded = [*settings, "cc.tune.sharded=true", "cc.tune.checkpointing=true"]
    codes, said = run_in_two(tmp_path, sharded, stop=12)
    assert codes == [143, 143], said
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 13 + 2  # steps and evaluations
    codes, said = run_in_two(tmp_path, sharded)
    assert codes == [0, 0], said
    assert_same(result(tmp_path), alone)
