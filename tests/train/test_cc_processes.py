"""Stage 1 in two processes over gloo: losses and weights of one process."""

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
import sys
from pathlib import Path
import torch
from llm2clip.train.cc.pipeline import run_cc
from llm2clip.train.recipe_files import load_recipe
torch.set_num_threads(1)
run_cc(load_recipe("debug", settings=sys.argv[2:]).cc, Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Losses of each step and weights, of one process and of two."""
    folder = tmp_path_factory.mktemp("processes")
    model, captions = llama_folder(folder / "model"), caption_file(folder / "captions.jsonl")
    settings = [f"cc.model={model}", f"cc.data={json.dumps([str(captions)])}", "cc.tune.parts=all"]
    # 25 texts: shares of different sizes.
    settings += ["cc.batch.size=9", "cc.tune.lr=1e-3", "cc.loop.steps=30", "cc.loop.checkpoint_every=30"]
    settings += ["cc.loop.evaluate_every=30", "cc.batch.random_negatives=true"]
    run_cc(load_recipe("debug", settings=settings).cc, folder / "run1")
    port = str(29500 + os.getpid() % 2000)
    places = [
        os.environ
        | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in range(2)
    ]
    command = [sys.executable, "-c", PROGRAM, str(folder / "run2"), *settings]
    processes = [subprocess.Popen(command, env=place, stderr=subprocess.PIPE, text=True) for place in places]
    said = [process.communicate(timeout=250)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return _result(folder / "run1"), _result(folder / "run2")


def _result(folder):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], load_file(
        folder / "model" / "model.safetensors"
    )


def test_two_processes_have_the_losses_and_weights_of_one(losses):
    (alone, weights), (together, others) = losses
    assert len(alone) == 30
    assert together == pytest.approx(alone, rel=1e-5)
    for name, tensor in weights.items():
        assert (tensor - others[name]).abs().max() < 1e-4 * tensor.abs().max(), name
