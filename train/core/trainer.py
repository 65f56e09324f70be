"""One training run on disk, and the loop every stage runs in.

A run is a folder: ``run.json`` (configuration, seed, versions, timings), ``history.jsonl`` (one line per logged step),
``<stage>.pt`` (resumable checkpoint) and whatever finished stages leave for the next. Started again with the same
configuration it goes on where it stopped; with another one it refuses.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm2clip.common.files import atomic_path, write_atomic
from llm2clip.common.installation import versions

PACKAGES = ("llm2clip-retrieval", "torch", "numpy", "tokenizers", "safetensors", "pillow")
"""What a result depends on: versions are recorded."""


class RunError(ValueError):
    """A run folder cannot be used."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length and schedule of a stage."""

    steps: int
    """Optimiser steps."""
    warmup: int = 30
    """Steps of linear warm-up."""
    floor: float = 0.02
    """Learning rate at the end, as a part of its peak (cosine in between)."""
    clip: float = 1.0
    """Largest gradient norm; larger ones are scaled down."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    evaluate_every: int = 200
    """Steps between evaluations; the last step is always evaluated."""


def learning_rate_factor(step: int, *, warmup: int, total: int, floor: float = 0.0) -> float:
    """Linear warm-up, then a half cosine down to ``floor`` (0 in golden case h)."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Run:
    """A run folder."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "run.json").exists():
            self._write({"seed": seed, "versions": versions(PACKAGES), "stages": {}})
        found = self._read()["seed"]
        if found != seed:
            raise RunError(
                f"{folder} holds a run with seed {found}, got seed {seed}. "
                "Choose another --out folder, or delete this one."
            )

    def begin(self, stage: str, config: Any, settings: Any = None) -> None:  # noqa: ANN401 - any dataclasses
        """Record a stage's configuration, or raise ``RunError`` if the stage began with another one.

        ``settings`` is the recipe the stage belongs to; its ``LoopConfig`` entries are ignored, they are the stages'
        own.
        """
        recipe = {f"settings.{key}": value for key, value in _without_loops(settings).items()}
        wanted = json.loads(json.dumps(asdict(config) | recipe))
        known = self._read()["stages"].get(stage, {}).get("config", wanted)
        changed = sorted(key for key in known.keys() | wanted.keys() if known.get(key) != wanted.get(key))
        if changed:
            raise RunError(
                f"{self.folder} holds stage {stage!r} with another configuration (differs in {changed}). "
                "Choose another --out folder, or delete this one."
            )
        self._update(stage, {"config": wanted})

    def _read(self) -> dict[str, Any]:
        saved: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return saved

    def _write(self, description: Mapping[str, Any]) -> None:
        write_atomic(
            self.folder / "run.json", json.dumps(description, indent=1, ensure_ascii=False), alone=True
        )

    def _update(self, stage: str, entry: Mapping[str, Any]) -> None:
        # Read again each time: stages that do not need each other may run side by side in two processes.
        description = self._read()
        description["stages"][stage] = description["stages"].get(stage, {}) | dict(entry)
        self._write(description)

    def describe(self, recipe: Any) -> None:  # noqa: ANN401 - any dataclass
        """Record the whole recipe as it is now."""
        self._write(self._read() | {"recipe": asdict(recipe)})

    def story(self) -> dict[str, Any]:
        """Everything recorded: recipe, seed, versions, stages and the metric history."""
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return self._read() | {"history": [json.loads(line) for line in lines]}

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line to the metric history."""
        line = {"stage": stage, "step": step, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        line |= {key: round(float(value), 6) for key, value in values.items()}
        with (self.folder / "history.jsonl").open("a", encoding="utf-8") as history:
            history.write(json.dumps(line) + "\n")

    def done(self, stage: str) -> bool:
        """Whether the stage has finished in this folder."""
        return "finished" in self._read()["stages"].get(stage, {})

    def finish(self, stage: str, *, seconds: float) -> None:
        """Mark a stage as finished."""
        self._update(
            stage, {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds, 1)}
        )

    def rng(self, stage: str, step: int) -> np.random.Generator:
        """The random numbers of one step, independent of interruptions."""
        return np.random.default_rng([self.seed, int.from_bytes(stage.encode()[:8].ljust(8), "big"), step])


def _without_loops(settings: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass or None
    entries = asdict(settings).items() if settings is not None else ()
    return {name: value for name, value in entries if not isinstance(getattr(settings, name), LoopConfig)}


@dataclass
class Trainee:
    """What a stage trains: named modules, and an optimiser whose groups have their peak rate in ``lr``."""

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    step: int = 0
    peaks: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]

    def parameters(self) -> list[nn.Parameter]:
        """All parameters the optimiser moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "peaks": self.peaks,
        }
        with atomic_path(path, alone=True) as draft:
            torch.save(state, draft)

    def load(self, path: Path) -> None:
        """Read a checkpoint (tensors only, nothing is unpickled)."""
        state = torch.load(path, weights_only=True, map_location=torch.get_default_device())
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.peaks = state["step"], state["peaks"]


StepFunction = Callable[[np.random.Generator, int], dict[str, Tensor]]
EvaluateFunction = Callable[[], dict[str, float]]


def train_loop(
    run: Run,
    stage: str,
    trainee: Trainee,
    step: StepFunction,
    *,
    config: LoopConfig,
    evaluate: EvaluateFunction | None = None,
    settings: Any = None,  # noqa: ANN401 - any dataclass
) -> None:
    """Train until ``config.steps``, resuming from the stage's checkpoint ``<stage>.pt``.

    Args:
        run: Folder of history and checkpoints.
        stage: Name of the stage.
        trainee: Modules and optimiser, changed in place.
        step: From a step's random numbers and its number to losses, of which ``"loss"`` is minimised.
        config: Length, schedule, intervals.
        evaluate: Its result is logged every ``evaluate_every`` steps.
        settings: Recipe of the stage; a run begun with another one is refused.
    """
    run.begin(stage, config, settings)
    checkpoint = run.folder / f"{stage}.pt"
    if checkpoint.exists():
        trainee.load(checkpoint)
    if run.done(stage):
        return
    begun, last_saved = time.monotonic(), trainee.step
    with _progress() as progress:
        task = progress.add_task(stage, total=config.steps, completed=trainee.step, note="")
        averages: dict[str, float] = {}
        while trainee.step < config.steps:
            losses = _one_step(run, stage, trainee, step, config)
            for name, value in losses.items():
                averages[name] = 0.95 * averages.get(name, value) + 0.05 * value
            trainee.step += 1
            note = " ".join(f"{name} {value:.3f}" for name, value in averages.items())
            progress.update(task, completed=trainee.step, note=note)
            final = trainee.step == config.steps
            if final or trainee.step % config.evaluate_every == 0:
                measured = evaluate() if evaluate else {}
                run.log(stage, trainee.step, averages | measured)
                progress.console.print(f"{stage} {trainee.step}: {note} " + _show(measured), highlight=False)
            if final or trainee.step - last_saved >= config.checkpoint_every:
                trainee.save(checkpoint)
                last_saved = trainee.step
    run.finish(stage, seconds=time.monotonic() - begun)


def _one_step(
    run: Run, stage: str, trainee: Trainee, step: StepFunction, config: LoopConfig
) -> dict[str, float]:
    torch.manual_seed(run.seed * 1_000_003 + trainee.step)
    factor = learning_rate_factor(trainee.step, warmup=config.warmup, total=config.steps, floor=config.floor)
    for group, peak in zip(trainee.optimizer.param_groups, trainee.peaks, strict=True):
        group["lr"] = peak * factor
    losses = step(run.rng(stage, trainee.step), trainee.step)
    loss = losses["loss"]
    if not bool(torch.isfinite(loss)):
        raise RunError(
            f"stage {stage!r} diverged at step {trainee.step}: loss is {loss.item()}. Lower the learning rate."
        )
    trainee.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(trainee.parameters(), config.clip)
    trainee.optimizer.step()
    return {name: float(value.detach()) for name, value in losses.items()}


def _show(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.1f}" for name, value in values.items())


def _progress() -> Any:  # noqa: ANN401 - rich is imported late
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        refresh_per_second=2,
    )
