"""Modules of transformers, without two of its habits: a slow QuickGELU, and torchao's log messages on import."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, final

import torch
from torch import Tensor, nn


@final
class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), to the last bit as transformers computes it, in less than half of its time on a CPU."""

    def forward(self, states: Tensor) -> Tensor:
        """Any shape -> the same."""
        scaled = 1.702 * states
        # A gradient would need what is overwritten otherwise.
        return states * scaled.sigmoid() if scaled.requires_grad else scaled.sigmoid_().mul_(states)


def replace_quick_gelu(module: nn.Module) -> nn.Module:
    """Put :class:`QuickGelu` in the place of transformers' own, everywhere in a module."""
    from transformers.activations import QuickGELUActivation

    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, QuickGELUActivation):
                setattr(part, name, QuickGelu())
    return module


def has_torchao() -> bool:
    """Whether torchao is installed."""
    return find_spec("torchao") is not None


def import_quietly() -> None:
    """Import torchao if it is there, as transformers does unasked, without what it logs of libraries for other GPUs."""
    if not has_torchao():
        return
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), suppress(Exception):  # whoever needs it is told later
            warnings.simplefilter("ignore")
            for name in ("torchao.quantization", "torchao.prototype.mx_formats"):
                import_module(name)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class TransformersTower(nn.Module):
    """A vision model of transformers, reduced to one of its outputs."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Shape: (B, 3, S, S), float, normalised -> (B, dim), not normalised."""
        vectors: Tensor = getattr(self.model(pixel_values=pixels_B3SS), self.output)
        return vectors


def build_clip_vision(sizes: Mapping[str, Any], *, dim: int, bias: bool) -> nn.Module:
    """CLIP's vision tower with its projection, whose bias is optional; ``sizes`` as its configuration names them."""
    import_quietly()
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    model: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, projection_dim=dim))
    if bias:
        model.visual_projection = nn.Linear(sizes["hidden_size"], dim)
    return TransformersTower(replace_quick_gelu(_with_real_buffers(model)), "image_embeds")


def build_siglip_vision(sizes: Mapping[str, Any]) -> nn.Module:
    """SigLIP's vision tower with attention pooling."""
    import_quietly()
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return TransformersTower(
        _with_real_buffers(SiglipVisionModel(SiglipVisionConfig(**sizes))), "pooler_output"
    )


def _with_real_buffers(model: nn.Module) -> nn.Module:
    """The only buffer counts positions and is in no file, so it must not stay on the meta device."""
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        numbers = torch.arange(buffer.numel(), device="cpu").view(buffer.shape)
        model.get_submodule(owner).register_buffer(leaf, numbers, persistent=False)
    return model
