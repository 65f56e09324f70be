"""A small stage with everything a checkpoint must hold: buffers, dropout, an average, a best evaluation.

Run as a script with a folder and a seed it trains there again and again in child processes, killed at random moments,
until a child gets to the end; it prints how often it killed. With a third argument it trains once, undisturbed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from llm2clip.train.core import distributed
from llm2clip.train.core.loop import train
from llm2clip.train.core.optimizer import make_optimizer
from llm2clip.train.core.run_folder import Run
from llm2clip.train.core.stage import LoopConfig, StepLosses

CONFIG = LoopConfig(
    steps=60, warmup=4, ema=0.9, keep_best="score", checkpoint_every=3, evaluate_every=9, log_every=1
)


class Toy:
    """Learns the sum of eight numbers."""

    name = "toy"

    def __init__(self, *, pause: float = 0.0, poison: int = -1, optimizer: str = "adamw") -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1)
        )
        self.modules = {"model": self.model}
        self.optimizer = make_optimizer(
            [{"params": list(self.model.parameters()), "lr": 0.02, "weight_decay": 0.01}],
            name=optimizer,  # type: ignore[arg-type]
        )
        self.micro_batch = 16
        self.pause, self.poison = pause, poison

    def step(self, number: int, rng: np.random.Generator) -> StepLosses:
        inputs = torch.from_numpy(rng.standard_normal((16, 8))).float()
        own = inputs[list(distributed.share_of(16))]
        if number == self.poison:
            own = own * float("nan")
        time.sleep(self.pause)
        loss = (self.model(own) - own.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        return StepLosses(losses={"loss": float(loss.detach())}, items=len(own), keys=(f"sample-{number}",))

    def evaluate(self) -> dict[str, float]:
        inputs = torch.eye(8)
        with torch.no_grad():
            return {"score": -float((self.model(inputs) - 1).pow(2).mean())}


def run_toy(folder: Path, toy: Toy, config: LoopConfig = CONFIG):
    return train(Run(folder, seed=5), toy, config, evaluate=toy.evaluate)


def killed_again_and_again(folder: Path, seed: int) -> int:
    # What training imports late is imported before the children are made, which saves each of them seconds.
    import rich.progress  # noqa: F401
    import torch._dynamo  # noqa: F401

    draw, kills = random.Random(seed), 0
    while True:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            run_toy(folder, Toy(pause=0.002))
            os._exit(0)
        if kills < 20:
            wait_for_lines(folder / "history.jsonl", draw.randrange(7))
            time.sleep(draw.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return kills
        kills += 1


def wait_for_lines(path: Path, count: int) -> None:
    """Return when the file was written ``count`` times, or after two seconds."""
    seen, size, end = -1, -1, time.monotonic() + 2
    while seen < count and time.monotonic() < end:
        now = path.stat().st_size if path.exists() else -1
        seen, size = seen + (now != size), now
        time.sleep(0.0005)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 3:
        run_toy(Path(sys.argv[1]), Toy(pause=float(sys.argv[3])))
    else:
        print(killed_again_and_again(Path(sys.argv[1]), int(sys.argv[2])))
