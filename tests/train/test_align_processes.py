"""Stage 2 in several processes: the losses of one, and an end with a sentence when one of them dies."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.train.align import material
from llm2clip.train.align.pipeline import prepare, run_align
from llm2clip.train.core import distributed
from llm2clip.train.core.history import read_history
from llm2clip.train.core.run_folder import RunError

from .align_material import in_processes, write_images

SCRIPT = Path(__file__).with_name("align_material.py")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("pairs") / "images")


def losses(folder):
    return [line["loss"] for line in read_history(folder / "history.jsonl") if line["kind"] == "train"]


def processes(count, *args):
    """Run the script in several processes; (exit codes, messages)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {
        "OMP_NUM_THREADS": "1",
        "LLM2CLIP_HOME": str(args[1]) + "-home",
    }
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *map(str, args)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    told = [process.communicate(timeout=250)[1] for process in running]
    return [process.returncode for process in running], told


def test_two_processes_have_the_losses_of_one(images, tmp_path, monkeypatch):
    monkeypatch.setattr(material, "load_encoder", lambda *_args, **_kwargs: FakeEncoder())
    codes, told = processes(2, images, tmp_path / "two")
    assert codes == [0, 0], told
    run_align(in_processes(images), tmp_path / "one")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 30
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)
    assert len(set(np.round(one, 6))) == 30


def test_a_process_that_dies_ends_the_run_with_a_sentence(images, tmp_path):
    codes, told = processes(2, images, tmp_path / "run", 4)
    assert codes == [1, 9]
    last = told[0].strip().splitlines()[-1]
    assert last.startswith("error: another of the 2 processes has ended or cannot be reached")


def test_a_batch_that_cannot_be_shared_is_refused_by_every_process(images, tmp_path, monkeypatch):
    """Before anything is exchanged, so that none waits for another."""
    monkeypatch.setattr(material, "load_encoder", lambda *_args, **_kwargs: FakeEncoder())
    stage = prepare(in_processes(images, batch=11), tmp_path, tell=lambda _line: None).stage
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    for number in (0, 1):
        monkeypatch.setattr(distributed, "process_number", lambda number=number: number)
        with pytest.raises(RunError, match=r"the batch of 11 cannot be shared equally by 2 .*, such as 10"):
            stage.step(0, np.random.default_rng(0))
