"""From trained parts to a folder that ``load_encoder`` reads."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from llm2clip.encoders.vision import ConvUnit, NanoVisionConfig, NanoVisionTower


def fold_batch_norm(tower: NanoVisionTower) -> NanoVisionTower:
    """The same tower in evaluation mode with every normalisation folded into the convolution before it.

    A convolution followed by (y - mean) / sqrt(var + eps) * gain + bias is a convolution with scaled kernels and a bias.
    """
    fields: dict[str, Any] = vars(tower.config) | {"batch_norm": False}
    folded = NanoVisionTower(NanoVisionConfig(**fields))
    source = copy.deepcopy(tower).eval()
    for name, unit in folded.named_modules():
        if isinstance(unit, ConvUnit):
            trained = source.get_submodule(name)
            norm = trained.norm
            if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None or norm.running_mean is None:
                raise ValueError(f"{name} has no batch normalisation with running statistics to fold")
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            with torch.no_grad():
                unit.conv.weight.copy_(trained.conv.weight * gain[:, None, None, None])  # type: ignore[union-attr, operator]
                unit.conv.bias.copy_(norm.bias - norm.running_mean * gain)  # type: ignore[union-attr, operator]
    rest = {
        key: value
        for key, value in source.state_dict().items()
        if not any(part in key for part in (".conv.", ".norm.running", ".norm.num_batches")) and key in folded.state_dict()
    }
    folded.load_state_dict(folded.state_dict() | rest)
    return folded.eval()
