"""EfficientNet-Lite0 to Lite2, and the vision tower that is made of one: its pooled state, or a code of its classes.

The mobile form of EfficientNet (arXiv 1905.11946): ReLU6 and no squeeze-and-excitation.
Sizes are those of the TensorFlow TPU repository (Apache-2.0), operations those of the PyTorch port whose weights are
published; a test holds them equal. Padding is TensorFlow's ``SAME``, so that images of any size are read.

The code of an image is exp(sharpness * (score - best score)) of each class, of unit length. Unlike scores themselves it
leaves out the many classes that fit badly in many ways, so a linear map of codes reaches things and scenes that are no
class but resemble several.

Shape suffixes: B images, S side in pixels.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.encoders.layers.configs import (
    HEAD_WIDTH,
    LITE_VARIANTS,
    EfficientNetLiteConfig,
    LiteTowerConfig,
)

_STEM = 32
_EPS, _MOMENTUM = 1e-3, 0.01
_AT_ONCE = 2
"""Images per thread that pass a tower together on a CPU: what the layers give is then in the cache, not in memory."""


class _Stage(NamedTuple):
    expansion: int
    kernel: int
    stride: int
    width: int
    blocks: int


_STAGES: Final = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)
"""Of Lite0; the first and the last stage always have one block."""


def stages(variant: int) -> list[_Stage]:
    """The stages of a variant; widths are rounded to a multiple of 8 that is no more than a tenth smaller."""
    wide, deep, _ = LITE_VARIANTS[variant]
    return [
        stage._replace(width=_rounded(stage.width * wide), blocks=math.ceil(stage.blocks * deep))
        if stage.blocks > 1
        else stage._replace(width=_rounded(stage.width * wide))
        for stage in _STAGES
    ]


def _rounded(width: float) -> int:
    near = max(8, int(width + 4) // 8 * 8)
    return near if near >= 0.9 * width else near + 8


class ConvUnit(nn.Module):
    """Convolution with ``SAME`` padding and batch normalisation.

    Shape: (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, batch_norm: bool, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            groups=groups,
            bias=not batch_norm,
            padding=kernel // 2 if stride == 1 else 0,
        )
        norm = nn.BatchNorm2d(outputs, eps=_EPS, momentum=_MOMENTUM) if batch_norm else nn.Identity()
        self.norm: nn.Module = norm

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        if self.stride > 1:
            height, width = (
                max(0, (-(-side // self.stride) - 1) * self.stride + self.kernel - side)
                for side in features.shape[2:]
            )
            # Zeros on both sides of an axis; the odd one comes after.
            features = F.pad(features, [width // 2, (width + 1) // 2, height // 2, (height + 1) // 2])
        output: Tensor = self.norm(self.conv(features))
        return output


def _relu6(features: Tensor) -> Tensor:
    """Over the output of a convolution, which nothing else reads: memory for another would cost more than the ReLU."""
    return F.relu6(features, inplace=True)


class InvertedResidual(nn.Module):
    """Widen with 1 x 1, filter each channel, narrow with 1 x 1; added to the input where the shapes allow."""

    def __init__(self, inputs: int, stage: _Stage, *, stride: int, batch_norm: bool) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        self.residual = stride == 1 and inputs == stage.width
        self.expand: ConvUnit | None = None
        if stage.expansion > 1:
            self.expand = ConvUnit(inputs, inner, 1, batch_norm=batch_norm)
        self.depthwise = ConvUnit(
            inner, inner, stage.kernel, stride=stride, groups=inner, batch_norm=batch_norm
        )
        self.project = ConvUnit(inner, stage.width, 1, batch_norm=batch_norm)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, inputs, H, W) -> (B, width, H / stride, W / stride)."""
        inner = _relu6(self.expand(features)) if self.expand is not None else features
        output: Tensor = self.project(_relu6(self.depthwise(inner)))
        return features + output if self.residual else output


class EfficientNetLite(nn.Module):
    """Normalised pixels to their pooled state, which the classifier, if there is one, reads."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.config = config
        norm = config.batch_norm
        self.stem = ConvUnit(3, _STEM, 3, stride=2, batch_norm=norm)
        inputs = _STEM
        blocks: list[InvertedResidual] = []
        for stage in stages(config.variant):
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(InvertedResidual(inputs, stage, stride=stride, batch_norm=norm))
                inputs = stage.width
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvUnit(inputs, HEAD_WIDTH, 1, batch_norm=norm)
        self.classifier = nn.Linear(HEAD_WIDTH, config.classes) if config.classes else None

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Mean over the final grid. Shape: (B, 3, S, S), normalised pixels -> (B, HEAD_WIDTH), not unit length."""
        return self.grid(pixels_B3SS).mean((2, 3))

    def grid(self, pixels_B3SS: Tensor) -> Tensor:
        """What the last convolution gives. Shape: (B, 3, S, S) -> (B, HEAD_WIDTH, G, G), 0 to 6."""
        features = _relu6(self.stem(pixels_B3SS))
        for block in self.blocks:
            features = block(features)
        return _relu6(self.head(features))

    def folded(self, *, classes: bool = False) -> EfficientNetLite:
        """A copy for inference with each normalisation folded into its convolution, with or without the classifier.

        A convolution, then (y - mean) / sqrt(var + eps) * gain + bias, is a convolution with scaled kernels and a bias.
        """
        kept = self.config.classes if classes else 0
        config = replace(self.config, batch_norm=False, classes=kept)
        weight = self.stem.conv.weight
        whole = EfficientNetLite(config).to(weight.device, weight.dtype)
        with torch.no_grad():
            for name, unit in whole.named_modules():
                if isinstance(unit, ConvUnit):
                    _fold(self.get_submodule(name), into=unit)
        if kept:
            whole.classifier = copy.deepcopy(self.classifier)
        return whole.requires_grad_(False).eval()


def _fold(source: nn.Module, *, into: ConvUnit) -> None:
    assert isinstance(source, ConvUnit), "both are of one configuration"
    assert into.conv.bias is not None, "it is without normalisation"
    norm = source.norm
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None, "it keeps statistics"
        assert norm.running_var is not None, "it keeps statistics"
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        into.conv.weight.copy_(source.conv.weight * gain[:, None, None, None])
        into.conv.bias.copy_(norm.bias - norm.running_mean * gain)
    else:
        into.conv.load_state_dict(source.conv.state_dict())


class LiteTower(nn.Module):
    """Pixels to one state per image."""

    def __init__(self, config: LiteTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = EfficientNetLite(config.trunk)
        self.centre: nn.Parameter | None = None
        if config.sharpness:
            self.centre = nn.Parameter(torch.zeros(config.trunk.classes))
            """Mean code, which is subtracted."""

    @property
    def width(self) -> int:
        """Length of the state."""
        return self.config.width

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Shape: (B, 3, S, S), normalised pixels -> (B, width), not unit length.

        On a CPU without gradients a few images after the other, which is up to twice as fast as all at once.
        """
        if self.training or torch.is_grad_enabled() or pixels_B3SS.device.type != "cpu":
            return self._states(self.trunk(pixels_B3SS))
        parts = pixels_B3SS.split(_AT_ONCE * torch.get_num_threads())
        return torch.cat([self._states(self.trunk(part)) for part in parts])

    def cells(self, pixels_B3SS: Tensor) -> Tensor:
        """What each cell of the grid would give alone. Shape: (B, 3, S, S) -> (B, G, G, width), not unit length."""
        return self._states(self.trunk.grid(pixels_B3SS).permute(0, 2, 3, 1))

    def _states(self, features: Tensor) -> Tensor:
        """Shape: (..., C) -> (..., width)."""
        if self.centre is None:
            return features
        assert self.trunk.classifier is not None, "the configuration has classes"
        return class_code(self.trunk.classifier(features), self.config.sharpness) - self.centre


def class_code(scores: Tensor, sharpness: float) -> Tensor:
    """exp(sharpness * (score - best score)), of unit length. Shape: (..., classes) -> the same."""
    scores = scores.float()
    return F.normalize(torch.exp(sharpness * (scores - scores.amax(-1, keepdim=True))), dim=-1)
