"""Exponential moving average of trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llm2clip.train.core.checkpoint import assign, whole


class WeightAverage:
    """Float32 averages of the trained parameters of named modules.

    The decay of update n is ``min(decay, (1 + n) / (10 + n))``, so that the first steps, from random weights, are soon
    forgotten (as in TensorFlow's ``ExponentialMovingAverage``).
    """

    def __init__(self, modules: Mapping[str, nn.Module], *, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of the weight average must be between 0 and 1, got {decay}")
        self.decay = decay
        self.updates = 0
        self._parameters = {
            f"{name}.{inner}": parameter
            for name, module in modules.items()
            for inner, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.averages: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the present weights, after a step of the optimiser."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = list(self.averages.values())
        current = [self._parameters[name].detach().float() for name in self.averages]
        torch._foreach_lerp_(averages, current, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the modules have the averaged weights."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self.write()
        try:
            yield
        finally:
            self._write(kept)

    def write(self) -> None:
        """Give the modules the averaged weights for good."""
        self._write(self.averages)

    def state(self) -> dict[str, object]:
        """What a checkpoint stores."""
        return {
            "updates": self.updates,
            "averages": {name: whole(average) for name, average in self.averages.items()},
        }

    @torch.no_grad()
    def load(self, *, updates: int, averages: Mapping[str, Tensor]) -> None:
        """Take over a stored state."""
        self.updates = updates
        for name, average in self.averages.items():
            assign(average, averages[name])

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])
