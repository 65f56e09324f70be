"""Runs the command with a fake encoder, says on standard output how far it is, and waits at a chosen point."""

import os
import signal
import sys
import time
from dataclasses import replace

import numpy as np

from llm2clip import encoders
from llm2clip.common import entrypoint
from llm2clip.encoders import FakeEncoder
from llm2clip.indexer.commands import build, maintain
from llm2clip.indexer.storage import transaction

# A shell starts background jobs with interrupts ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def say(what: str) -> None:
    print(what, flush=True)
    if what == WAIT_AT:
        time.sleep(100)
    elif WAIT_AT == "everywhere a little":
        time.sleep(0.4)


class TellingEncoder(FakeEncoder):
    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        rows = super()._image_batch(pixels)
        say(f"batch {len(self.image_batches)}")
        return rows


def told(name: str) -> None:
    """Make a step of committing say that it begins and that it ended."""
    step = getattr(transaction, name)

    def telling(*args: object, **options: object) -> object:
        say(f"before {name}")
        result = step(*args, **options)
        say(f"after {name}")
        return result

    setattr(transaction, name, telling)


def load(name: str, **_: object) -> FakeEncoder:
    say("load")
    return TellingEncoder(name=name, dim=int(name.removeprefix("fake")) if name.startswith("fake") else 16)


if __name__ == "__main__":
    WAIT_AT = sys.argv.pop(1)
    build.load = maintain.load = load
    if os.environ.get("DOWNLOADED"):  # as where every built-in encoder is on the machine
        known = [replace(card, available=True) for card in encoders.list_encoders()]
        encoders.list_encoders = lambda: known
    transaction.CHECKPOINT_SECONDS = 0.0
    for name in ("join_small", "write_manifest", "clean"):
        told(name)
    entrypoint.index()
