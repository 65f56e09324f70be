"""What a run logs: always ``history.jsonl``, and TensorBoard, W&B or trackio where asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm2clip.common.files import write_atomic

FILE = "history.jsonl"
TRACKERS = ("tensorboard", "wandb", "trackio")
"""Programs that can follow a run."""

Send = Callable[[int, Mapping[str, float]], None]


class History:
    """The lines of one stage in ``history.jsonl``: step, time and measured values, full precision."""

    def __init__(self, folder: Path, stage: str, *, trackers: Sequence[str] = ()) -> None:
        self._path, self._stage = folder / FILE, stage
        self._followers = [_tracker(name, folder, stage) for name in trackers]

    def add(self, step: int, values: Mapping[str, float], *, trained: bool = True) -> None:
        """Append a line; ``trained`` tells losses of a step from measures of an evaluation."""
        line: dict[str, Any] = {
            "stage": self._stage,
            "step": step,
            "kind": "train" if trained else "evaluation",
        }
        line["time"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        line |= {name: float(value) for name, value in values.items()}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        for send in self._followers:
            send(step, values)

    def rewind(self, step: int, *, evaluated: int) -> None:
        """Drop the lines of steps and evaluations after these, which will come again, and a last one cut off."""
        if not self._path.exists():
            return
        last = {"train": step, "evaluation": evaluated}
        kept = [
            line
            for line in read_history(self._path)
            if line["stage"] != self._stage or line["step"] <= last[line["kind"]]
        ]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept), alone=True)


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a history file; a last one without an end is left out."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if line.endswith("\n"):
                yield json.loads(line)


def _tracker(name: str, folder: Path, stage: str) -> Send:
    if name not in TRACKERS:
        raise ValueError(f"unknown tracker {name!r}, expected {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"tracker {name!r} is not installed: pip install {name}, or leave it out")
    if name == "tensorboard":
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

        def to_tensorboard(step: int, values: Mapping[str, float]) -> None:
            for key, value in values.items():
                writer.add_scalar(f"{stage}/{key}", value, step)
            writer.flush()

        return to_tensorboard
    # W&B and trackio share the interface of wandb.init and log.
    module = importlib.import_module(name)
    own = {"dir": str(folder)} if name == "wandb" else {}
    module.init(project=os.environ.get("WANDB_PROJECT", "llm2clip"), name=f"{folder.name}-{stage}", **own)

    def to_module(step: int, values: Mapping[str, float]) -> None:
        module.log({f"{stage}/{key}": value for key, value in values.items()}, step=step)

    return to_module
