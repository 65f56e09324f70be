"""The vision tower of nano: a small residual network whose last cells are read by two transformer blocks.

Shape suffixes: B images, S side in pixels, T cells of the final grid (plus one read-out token), D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NanoVisionConfig:
    """Shape of the tower."""

    image_size: int = 72
    """Side S of the square input in pixels."""
    widths: tuple[int, int, int] = (48, 96, 192)
    """Channels at strides 4, 8 and 16; the last is the width D of the transformer blocks."""
    blocks: tuple[int, int, int] = (1, 2, 1)
    """Residual blocks at each stride."""
    layers: int = 2
    """Transformer blocks over the final grid."""
    heads: int = 6
    """Attention heads of each."""
    batch_norm: bool = False
    """Normalise after each convolution; on while training, folded into the convolutions for release."""

    @property
    def grid(self) -> int:
        """Cells along one side of the final grid."""
        side = self.image_size
        for _ in range(4):
            side = (side + 1) // 2
        return side


class ConvUnit(nn.Sequential):
    """3 x 3 convolution and BatchNorm. Shape: (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=not batch_norm)
        self.norm: nn.Module = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()


class ResidualConv(nn.Module):
    """relu(x + conv(relu(conv(x))))."""

    def __init__(self, width: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.first = ConvUnit(width, width, stride=1, batch_norm=batch_norm)
        self.second = ConvUnit(width, width, stride=1, batch_norm=batch_norm)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, width, H, W) -> the same."""
        return F.relu(features + self.second(F.relu(self.first(features))))


class AttentionBlock(nn.Module):
    """Pre-norm self-attention and a GELU feed-forward layer of twice the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Shape: (B, T, D) -> (B, T, D)."""
        qkv = self.qkv(self.norm1(tokens_BTD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        tokens_BTD = tokens_BTD + self.proj(mixed.transpose(1, 2).flatten(2))
        output: Tensor = tokens_BTD + self.mlp(self.norm2(tokens_BTD))
        return output


class NanoVisionTower(nn.Module):
    """Pixels to one pooled state per image."""

    def __init__(self, config: NanoVisionConfig) -> None:
        super().__init__()
        self.config = config
        norm = config.batch_norm
        first, _, third = config.widths
        self.stem = ConvUnit(3, first // 2, stride=2, batch_norm=norm)
        inputs = first // 2
        stages: list[nn.Module] = []
        for width, count in zip(config.widths, config.blocks, strict=True):
            down = nn.Sequential(ConvUnit(inputs, width, stride=2, batch_norm=norm), nn.ReLU())
            stages.append(nn.Sequential(down, *(ResidualConv(width, batch_norm=norm) for _ in range(count))))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.position = nn.Parameter(torch.zeros(1, config.grid**2 + 1, third))
        self.readout = nn.Parameter(torch.zeros(1, 1, third))
        self.layers = nn.ModuleList(AttentionBlock(third, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(third)
        nn.init.normal_(self.position, std=0.02)
        nn.init.normal_(self.readout, std=0.02)

    @property
    def width(self) -> int:
        """Width D of the pooled state."""
        return self.config.widths[2]

    def forward(self, pixels_B3SS: Tensor, *, pooled: bool = True) -> Tensor:
        """Shape: (B, 3, S, S), normalised pixels -> (B, D), the normalised read-out token, not unit length.

        Without ``pooled``: the read-out token and the cells by row, before the last norm. (B, 1 + grid * grid, D).
        """
        features = F.relu(self.stem(pixels_B3SS))
        for stage in self.stages:
            features = stage(features)
        tokens = features.flatten(2).transpose(1, 2)
        tokens = torch.cat((self.readout.expand(len(tokens), -1, -1), tokens), dim=1) + self.position
        for layer in self.layers:
            tokens = layer(tokens)
        states: Tensor = self.norm(tokens[:, 0]) if pooled else tokens
        return states
