"""What the training loop asks of a stage, and what it is told about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from llm2clip.train.core.optimizer import Optimizer
from llm2clip.train.core.schedule import Decay


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length, schedule and intervals of a stage."""

    steps: int
    """Optimiser steps."""
    warmup: int = 0
    """Steps of linear warm-up."""
    decay: Decay = "cosine"
    """How the learning rate falls after it: cosine, linear or constant."""
    floor: float = 0.0
    """Learning rate at the end as a share of its peak."""
    clip: float | None = 1.0
    """Largest norm of the gradient; a larger one is scaled down. ``None``: no limit."""
    ema: float | None = None
    """Decay of an average of the weights, such as 0.999, which is then evaluated and exported."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    evaluate_every: int = 200
    """Steps between evaluations; before the first and after the last step there is always one."""
    keep_best: str | None = None
    """Measure of the evaluation; the weights with its highest value are exported, not the last ones."""
    patience: int | None = None
    """Stop after so many evaluations in a row without a better ``keep_best``."""
    log_every: int = 10
    """Steps between lines of the history."""
    trackers: tuple[str, ...] = ()
    """Programs that follow the run too: tensorboard, wandb, trackio."""

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "evaluate_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup must be between 0 and steps ({self.steps}), got {self.warmup}")
        if self.decay not in ("cosine", "linear", "constant"):
            raise ValueError(f"decay must be cosine, linear or constant, got {self.decay!r}")
        if self.patience is not None and not self.keep_best:
            raise ValueError("patience needs keep_best: name the measure that has to improve")


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """What a step did."""

    losses: Mapping[str, float]
    """``loss``, which was minimised, and whatever else is worth a curve."""
    items: int
    """Items of the batch in this process, for the speed shown."""
    keys: tuple[str, ...] = ()
    """Names of the batch's samples, written down if the loss is not finite."""


class Trainable(Protocol):
    """A stage as the loop sees it."""

    name: str
    """Names its checkpoint and its lines in the history."""
    modules: Mapping[str, nn.Module]
    """What is trained, without wrappers."""
    optimizer: Optimizer
    """Its groups have their peak learning rate in ``lr``."""
    micro_batch: int
    """Items that are computed at a time; the loop halves it when memory runs out."""

    def step(self, number: int, rng: np.random.Generator) -> StepLosses:
        """Compute the losses of step ``number`` and add its gradients, in micro-batches if need be."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage came to."""

    steps: int
    """Steps taken in all."""
    exported: int
    """The step whose weights the modules have now."""
    measures: Mapping[str, float]
    """Evaluation of those weights; empty without one."""
    stopped_early: bool
    """Whether ``patience`` ran out."""


Evaluate = Callable[[], Mapping[str, float]]
"""Measures the present weights; higher is better where a measure chooses among them."""
