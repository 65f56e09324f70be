"""The text adapter of LLM2CLIP: from the language model's pooled state to the space shared with images.

Source: LLM2CLIP paper section 4.1 (inverted bottleneck, after FuseMix) and its released ``TextProj``; golden
cases b and e.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + Linear(GELU(Linear(LayerNorm(x)))) with an inner width of ``expansion`` times the outer one."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        # The third entry is the released module's dropout (probability 0): it keeps the parameter name fn.3.
        self.fn = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(), nn.Identity(), nn.Linear(expansion * width, width)
        )

    def forward(self, features_BD: Tensor) -> Tensor:
        """Shape: (B, D) -> (B, D)."""
        output: Tensor = features_BD + self.fn(self.ln(features_BD))
        return output


class TextAdapter(nn.Module):
    """L2-normalise, ``blocks`` residual blocks, LayerNorm, Linear.

    Parameter names below this module are those of the released checkpoints: ``adaptor.0.fn.0.weight``, ...
    """

    def __init__(
        self, width: int, dim: int, *, blocks: int = 4, expansion: int = 2, normalize_input: bool = True
    ) -> None:
        super().__init__()
        self.normalize_input = normalize_input
        self.adaptor = nn.Sequential(
            *(ResidualBlock(width, expansion) for _ in range(blocks)),
            nn.LayerNorm(width),
            nn.Linear(width, dim),
        )

    def forward(self, features_BD: Tensor) -> Tensor:
        """Project pooled language-model states.

        Args:
            features_BD: Shape: (B, width), pooled states, any scale (a zero row stays zero).

        Returns:
            Shape: (B, dim), not normalised.
        """
        if self.normalize_input:
            features_BD = F.normalize(features_BD, dim=-1)
        projected: Tensor = self.adaptor(features_BD)
        return projected


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Shape of the text adapter."""

    width: int
    """Width of the language model's pooled state."""
    dim: int
    """Length of the vectors of both sides."""
    blocks: int = 4
    """Residual blocks."""
    expansion: int = 2
    """Inner width of a block in multiples of ``width``."""
    normalize_input: bool = True
    """Scale the pooled state to unit length first."""
