"""Runs the command with a slow encoder that says on standard output how far it is, to be killed at a chosen point."""

from __future__ import annotations

import sys
import time

import numpy as np

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import cli, command, generation


def say(what: str) -> None:
    print(what, flush=True)


class SlowEncoder(FakeEncoder):
    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        rows = super()._image_batch(pixels)
        say(f"batch {len(self.image_batches)}")
        time.sleep(PAUSE)
        return rows


def paused(name: str) -> None:
    """Make a step of committing say that it begins and that it ended, and wait after each."""
    step = getattr(generation, name)

    def slow(*args: object, **options: object) -> object:
        say(f"before {name}")
        time.sleep(PAUSE)
        result = step(*args, **options)
        say(f"after {name}")
        time.sleep(PAUSE)
        return result

    setattr(generation, name, slow)


def load(name: str) -> FakeEncoder:
    say("load")
    time.sleep(PAUSE)
    return SlowEncoder(dim=int(name.removeprefix("fake")))


if __name__ == "__main__":
    PAUSE = float(sys.argv.pop(1))
    command._load = load
    generation.CHECKPOINT_SECONDS = 0.0
    for name in ("write_faiss", "write_manifest", "remove_generations"):
        paused(name)
    cli.main()
