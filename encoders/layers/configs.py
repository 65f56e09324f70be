"""Sizes of the layers, as folders of encoders and checkpoints state them; importing them loads no torch.

Published checkpoints use the same names in their ``config.json``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from llm2clip.encoders.core.files import MOST_LAYERS, NEWER, check_size

HEAD_WIDTH: Final = 1280
"""Channels of the final grid, and length of the pooled state: the same for all variants."""
LITE_VARIANTS: Final = {0: (1.0, 1.0, 224), 1: (1.0, 1.1, 240), 2: (1.1, 1.2, 260)}
"""Variant -> multiples of width and depth, and the side of the images it was trained on."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """The ``llama3`` rule (Llama 3.1 and later): low frequencies stretch beyond the original context."""

    factor: float
    """How many times slower the lowest frequencies turn."""
    low_freq_factor: float
    """Wavelengths longer than original context / this are stretched fully."""
    high_freq_factor: float
    """Wavelengths shorter than original context / this are left alone."""
    original_max_position_embeddings: int
    """Context length in tokens before stretching."""

    def __post_init__(self) -> None:
        factors = self.factor, self.low_freq_factor, self.high_freq_factor
        if not all(0 < factor < math.inf for factor in factors) or not factors[1] < factors[2]:
            raise ValueError(
                "factor, low_freq_factor and high_freq_factor must be positive, the second below the third, "
                f"got {factors}"
            )
        check_size("original_max_position_embeddings", self.original_max_position_embeddings)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Shape of a Llama; the fields carry the names of a published ``config.json``."""

    vocab_size: int
    """Rows of the token embedding."""
    hidden_size: int
    """Width D of the residual stream."""
    intermediate_size: int
    """Width of the SwiGLU hidden layer."""
    num_hidden_layers: int
    """Number of blocks."""
    num_attention_heads: int
    """Query heads H."""
    num_key_value_heads: int
    """Key/value heads K; H must be a multiple (grouped-query attention)."""
    head_dim: int
    """Width E of one head."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square before the root."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1 frequency stretching, or none."""
    attention_bias: bool = field(default=False, metadata=NEWER)
    """Whether queries, keys and values have a bias (Qwen2)."""
    qk_norm: bool = field(default=False, metadata=NEWER)
    """Whether each head's query and key are normalised before the rotary embedding (Qwen3)."""

    def __post_init__(self) -> None:
        check_size("num_hidden_layers", self.num_hidden_layers, most=MOST_LAYERS)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"):
            check_size(name, getattr(self, name))
        check_size("num_key_value_heads", self.num_key_value_heads)
        check_size("head_dim", self.head_dim)
        if not 0 < self.rms_norm_eps < 1 or not 0 < self.rope_theta < math.inf:
            got = f"{self.rms_norm_eps} and {self.rope_theta}"
            raise ValueError(f"rms_norm_eps must be between 0 and 1, rope_theta positive, got {got}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads must be a multiple of num_key_value_heads, "
                f"got {self.num_attention_heads} and {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embedding, got {self.head_dim}")


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Shape of a BERT; the fields carry the names of a published ``config.json``."""

    vocab_size: int
    """Rows of the token embedding."""
    hidden_size: int
    """Width D of the residual stream."""
    intermediate_size: int
    """Width of the hidden layer of a block."""
    num_hidden_layers: int
    """Number of blocks."""
    num_attention_heads: int
    """Heads H; the width must be a multiple."""
    max_position_embeddings: int
    """Rows of the position embedding."""
    type_vocab_size: int = 2
    """Rows of the segment embedding; every token is of the first segment."""
    layer_norm_eps: float = 1e-12
    """Added to the variance before the root."""
    first_position: int = 0
    """Row of the position embedding of the first token: 0 in BERT, 1 + the padding token's id in XLM-RoBERTa."""

    def __post_init__(self) -> None:
        check_size("num_hidden_layers", self.num_hidden_layers, most=MOST_LAYERS)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"):
            check_size(name, getattr(self, name))
        check_size("max_position_embeddings", self.max_position_embeddings)
        check_size("type_vocab_size", self.type_vocab_size)
        if self.hidden_size % self.num_attention_heads:
            got = f"{self.hidden_size} and {self.num_attention_heads}"
            raise ValueError(f"hidden_size must be a multiple of num_attention_heads, got {got}")
        if not 0 < self.layer_norm_eps < 1:
            raise ValueError(f"layer_norm_eps must be between 0 and 1, got {self.layer_norm_eps}")
        if (
            type(self.first_position) is not int
            or not 0 <= self.first_position < self.max_position_embeddings
        ):
            raise ValueError(
                f"first_position must be from 0 to {self.max_position_embeddings - 1}, got {self.first_position}"
            )

    @property
    def most_tokens(self) -> int:
        """Longest row in tokens: positions that are left from the first one on."""
        return self.max_position_embeddings - self.first_position


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Shape of the text adapter."""

    width: int
    """Width of the language model's pooled state."""
    dim: int
    """Length of the vectors of both towers."""
    blocks: int = 4
    """Residual blocks."""
    expansion: int = 2
    """Inner width of a block in multiples of ``width``."""
    normalize_input: bool = True
    """Scale the pooled state to unit length first."""


@dataclass(frozen=True, kw_only=True)
class EfficientNetLiteConfig:
    """Which EfficientNet-Lite."""

    variant: int
    """0, 1 or 2."""
    image_size: int
    """Side S of the square input in pixels."""
    classes: int = 0
    """Outputs of the classifier; 0 for none."""
    batch_norm: bool = False
    """Normalise after each convolution; on while training, folded into the convolutions for inference."""

    def __post_init__(self) -> None:
        if type(self.variant) is not int or self.variant not in LITE_VARIANTS:
            raise ValueError(
                f"variant must be one of {', '.join(map(str, LITE_VARIANTS))}, got {self.variant!r}"
            )
        check_size("image_size", self.image_size, most=4096)
        if self.classes != 0:
            check_size("classes", self.classes)


def trained_size(variant: int) -> int:
    """Side of the images, in pixels, that the published weights were trained on."""
    return LITE_VARIANTS[variant][2]


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
