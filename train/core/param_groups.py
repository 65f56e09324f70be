"""Which learning rate and weight decay each parameter of stage 2 has: layer decay on the vision tower.

Names are those of the published training checkpoints: ``visual.*``, ``text.*``, ``logit_scale``. Source: golden case h.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Tower = Literal["visual", "text", "other"]
_BLOCK = re.compile(r"visual\.blocks\.(\d+)\.")
_FIRST = ("visual.patch_embed.", "visual.pos_embed", "visual.cls_token")
_LAST = ("visual.norm.", "visual.head.")
_UNDECAYED = ("visual.pos_embed", "visual.cls_token", "logit_scale")


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Peak learning rates, weight decays and layer decay of stage 2."""

    visual_lr: float = 1e-5
    """Of the vision tower's last layer."""
    text_lr: float = 1e-5
    """Of the text adapter."""
    lr: float = 1e-5
    """Of the rest: the logit scale."""
    visual_weight_decay: float = 0.05
    """Of the vision tower's matrices."""
    text_weight_decay: float = 0.05
    """Of the adapter's matrices."""
    weight_decay: float = 0.05
    """Of matrices of the rest, of which there are none."""
    visual_layer_decay: float = 0.85
    """Factor on the learning rate from each layer of the tower to the one below it; at least 1: none."""

    def __post_init__(self) -> None:
        if self.visual_layer_decay <= 0:
            raise ValueError(f"visual_layer_decay must be positive, got {self.visual_layer_decay}")


@dataclass(frozen=True)
class Placing:
    """Tower, rate and decay of one parameter; parameters with the same make up a group of the optimiser."""

    tower: Tower
    """Whose it is."""
    lr_scale: float
    """Factor on the tower's learning rate."""
    weight_decay: float
    """Its weight decay."""


def place_parameters(
    dimensions: Mapping[str, int], *, config: GroupConfig | None = None
) -> dict[str, Placing]:
    """The tower, learning-rate factor and weight decay of each parameter, from its name and number of axes.

    The patch embedding, the positions and the class token are layer 0, block i is layer i + 1; final norm and head have
    the full rate, and layer l of L blocks ``visual_layer_decay ** (L + 1 - l)`` of it. Vectors, scalars, biases,
    positions and the class token have no weight decay. ``ValueError`` for a name that no published tower has.
    """
    config = config or GroupConfig()
    found = [_BLOCK.match(name) for name in dimensions]
    depth = max((int(match[1]) + 1 for match in found if match), default=0)
    decays = {"visual": config.visual_weight_decay, "text": config.text_weight_decay}
    placed = {}
    for name, axes in dimensions.items():
        prefix = name.split(".")[0]
        tower: Tower = "visual" if prefix == "visual" else "text" if prefix == "text" else "other"
        free = axes <= 1 or name.endswith(".bias") or name in _UNDECAYED
        scale = 1.0
        if tower == "visual" and config.visual_layer_decay < 1:
            scale = config.visual_layer_decay ** (depth + 1 - _layer(name, depth))
        placed[name] = Placing(tower, scale, 0.0 if free else decays.get(tower, config.weight_decay))
    return placed


def optimiser_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], *, config: GroupConfig | None = None
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser from ``named_parameters()``; frozen parameters are left out."""
    config = config or GroupConfig()
    named = dict(parameters)
    rates = {"visual": config.visual_lr, "text": config.text_lr, "other": config.lr}
    groups: dict[Placing, list[nn.Parameter]] = {}
    placed = place_parameters({name: parameter.ndim for name, parameter in named.items()}, config=config)
    for name, placing in placed.items():
        if named[name].requires_grad:
            groups.setdefault(placing, []).append(named[name])
    return [
        {"params": members, "lr": p.lr_scale * rates[p.tower], "weight_decay": p.weight_decay}
        for p, members in groups.items()
    ]


def _layer(name: str, depth: int) -> int:
    if block := _BLOCK.match(name):
        return int(block[1]) + 1
    if name.startswith(_FIRST):
        return 0
    if name.startswith(_LAST):
        return depth + 1
    raise ValueError(
        f"no layer is known for {name!r}; expected visual.blocks.N.*, {', '.join((*_FIRST, *_LAST))}"
    )
