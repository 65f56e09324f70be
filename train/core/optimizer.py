"""The optimiser of a run: AdamW, or Muon for matrices beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import torch

OptimizerName: TypeAlias = Literal["adamw", "muon"]


class Optimizer(Protocol):
    """What the training loop needs of an optimiser."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups with ``params`` and ``lr``, which the loop sets."""

    def step(self) -> object:
        """Change the weights."""

    def zero_grad(self) -> None:
        """Drop the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint stored."""


def make_optimizer(
    groups: Sequence[dict[str, Any]],
    *,
    name: OptimizerName = "adamw",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """The optimiser for parameter groups with ``params``, ``lr`` and ``weight_decay``.

    ``muon`` orthogonalises the updates of matrices (Jordan et al. 2024, ``torch.optim.Muon``), scaled so that AdamW's
    rates fit (Liu et al. 2025); vectors, convolutions and scalars stay with AdamW.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, eps=eps)
    matrices = _having(groups, matrices=True)
    rest = _having(groups, matrices=False)
    parts: list[Optimizer] = []
    if matrices:
        parts.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"))
    if rest:
        parts.append(torch.optim.AdamW(rest, betas=betas, eps=eps))
    return _Several(parts)


class _Several:
    """Optimisers of different parameters as one."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def _having(groups: Sequence[dict[str, Any]], *, matrices: bool) -> list[dict[str, Any]]:
    found = [
        {**group, "params": [p for p in group["params"] if (p.ndim == 2) is matrices]} for group in groups
    ]
    return [group for group in found if group["params"]]
