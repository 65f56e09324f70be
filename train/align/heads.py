"""What follows the towers: projection or adapter of the images, adapter of the texts, scale and bias of the loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.encoders.layers.llama import ResidualBlock, TextAdapter
from llm2clip.train.align.closed_form import LinearMap
from llm2clip.train.align.config import AlignConfig, AlignLoss
from llm2clip.train.align.towers import Tower
from llm2clip.train.core.distributed import process_count
from llm2clip.train.core.losses import (
    clip_loss,
    first_row,
    gather_with_grad,
    sharded_clip_loss,
    siglip_loss,
)


class Scales(nn.Module):
    """The learnt numbers of the loss."""

    def __init__(self, config: AlignLoss) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.logit_bias = nn.Parameter(torch.tensor(config.bias)) if config.kind == "sigmoid" else None
        self._most = math.log(config.most_scale)

    @torch.no_grad()
    def hold(self) -> None:
        """Keep the factor between 1 and its limit."""
        self.logit_scale.clamp_(0, self._most)


def make_image_head(tower: Tower, config: AlignConfig) -> nn.Module:
    """Features of the tower to vectors of both sides; ``ValueError`` if ``none`` does not give ``dim``."""
    vision = config.vision
    if vision.head == "none":
        if tower.width != config.dim:
            raise ValueError(
                f"without a head the vectors have the tower's length: set dim to {tower.width} (got {config.dim})"
            )
        return nn.Identity()
    if vision.head == "adapter":
        return TextAdapter(tower.width, config.dim, blocks=vision.blocks, expansion=vision.expansion)
    # OpenAI's projection has no bias; a closed-form one needs it for the mean.
    return nn.Linear(tower.width, config.dim, bias=tower.layout != "openai" or config.closed_form.used)


def make_text_adapter(width: int, config: AlignConfig) -> TextAdapter:
    """Features of the text model to vectors of both sides."""
    text = config.text
    return TextAdapter(
        width,
        config.dim,
        blocks=text.blocks,
        expansion=text.expansion,
        normalize_input=text.normalize_input,
    )


def before_last(head: nn.Module, features: Tensor) -> Tensor:
    """What the last linear layer of a head reads. Shape: (B, width) -> (B, width)."""
    if not isinstance(head, TextAdapter):
        return features
    if head.normalize_input:
        features = F.normalize(features, dim=-1)
    states: Tensor = head.adaptor[:-1](features)
    return states


@torch.no_grad()
def set_last(head: nn.Module, fitted: LinearMap) -> None:
    """Put a fitted map into the last linear layer of a head."""
    last = head.adaptor[-1] if isinstance(head, TextAdapter) else head
    assert isinstance(last, nn.Linear)
    last.weight.copy_(torch.from_numpy(fitted.weight))
    last.bias.copy_(torch.from_numpy(fitted.bias))


@torch.no_grad()
def make_blocks_identities(head: nn.Module) -> None:
    """Let residual blocks begin as identities, so that a closed-form fit sees the plain features."""
    for part in head.modules():
        if isinstance(part, ResidualBlock):
            for parameter in part.fn[3].parameters():
                parameter.zero_()


def loss_of(images: Tensor, texts: Tensor, scales: Scales, config: AlignLoss) -> Tensor:
    """The loss of this process's pairs among all processes'. Shapes: (B, dim), any scale, twice -> ()."""
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    scale = scales.logit_scale.exp()
    if config.kind == "sigmoid":
        assert scales.logit_bias is not None
        return siglip_loss(
            images,
            gather_with_grad(texts),
            logit_scale=scale,
            logit_bias=scales.logit_bias,
            first_text=first_row(images),
        )
    softmax = clip_loss if process_count() == 1 else sharded_clip_loss
    return softmax(images, texts, logit_scale=scale, label_smoothing=config.label_smoothing)
