"""An EfficientNet-Lite as a vision tower: its pooled state, or what its classifier says of it.

The code of an image is exp(sharpness * (score - best score)) of each class, of unit length. Unlike scores themselves it
leaves out the many classes that fit badly in many ways, so a linear map of codes reaches things and scenes that are no
class but resemble several.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.encoders.layers.efficientnet_lite import HEAD_WIDTH, EfficientNetLite, EfficientNetLiteConfig


@dataclass(frozen=True, kw_only=True)
class LiteTowerConfig:
    """Shape of the tower."""

    trunk: EfficientNetLiteConfig
    """The EfficientNet-Lite; with a classifier if ``sharpness`` is given."""
    sharpness: float = 0.0
    """Factor on the scores of the classes; 0 for the pooled state itself."""

    def __post_init__(self) -> None:
        if self.sharpness < 0 or bool(self.sharpness) != bool(self.trunk.classes):
            raise ValueError(
                "sharpness must be positive with a classifier and 0 without, got "
                f"{self.sharpness} and trunk.classes {self.trunk.classes}"
            )

    @property
    def width(self) -> int:
        """Length of the state."""
        return self.trunk.classes if self.sharpness else HEAD_WIDTH

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.trunk.image_size

    @property
    def batch_norm(self) -> bool:
        """Whether the trunk still has batch normalisation of its own."""
        return self.trunk.batch_norm


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
        """Shape: (B, 3, S, S), normalised pixels -> (B, width), not unit length."""
        if self.centre is None:
            state: Tensor = self.trunk(pixels_B3SS)
            return state
        return class_code(self.trunk.logits(pixels_B3SS), self.config.sharpness) - self.centre


def class_code(scores: Tensor, sharpness: float) -> Tensor:
    """exp(sharpness * (score - best score)), of unit length. Shape: (B, classes) -> (B, classes)."""
    scores = scores.float()
    return F.normalize(torch.exp(sharpness * (scores - scores.amax(-1, keepdim=True))), dim=-1)
