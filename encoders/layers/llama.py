"""Llama as a text encoder: the published architecture, attention both ways, no language-model head.

Parameter names, shapes and arithmetic are those of transformers' ``LlamaModel``, so its checkpoints drop in;
a test holds the two equal. The module is ours because importing transformers' Llama pulls in
torch.distributed, torch._dynamo and scipy, which takes twice as long as everything else a search does from a
cold start.

Shape suffixes: B texts, L token positions, D hidden width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.encoders.core.files import MOST_LAYERS, check_size


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

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read a published ``config.json`` (as a dict), of transformers 4 or 5 layout.

        Raises ``ValueError`` where the architecture differs from what this module computes.
        """
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        _refuse_other_arithmetic(config, rope)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ValueError(f"unsupported rope type {kind!r}, expected 'default' or 'llama3'")
        scaling = None
        if kind == "llama3":
            scaling = RopeScaling(
                factor=float(rope["factor"]),
                low_freq_factor=float(rope["low_freq_factor"]),
                high_freq_factor=float(rope["high_freq_factor"]),
                original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
            )
        heads = int(config["num_attention_heads"])
        return cls(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            rope_scaling=scaling,
        )


_NEUTRAL: Mapping[str, object] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "alibi": False,
    "attention_bias": False,
    "attention_multiplier": None,
    "attn_logit_softcapping": None,
    "clip_qkv": None,
    "embedding_multiplier": 1,
    "mlp_bias": False,
    "no_rope_layers": None,
    "num_experts": None,
    "num_local_experts": None,
    "partial_rotary_factor": 1,
    "qk_norm": False,
    "query_pre_attn_scalar": None,
    "residual_multiplier": 1,
    "rotary_pct": 1,
    "scale_depth": None,
    "scale_emb": 1,
    "sliding_window": None,
    "use_parallel_residual": False,
    "use_qk_norm": False,
    "use_sliding_window": False,
}
"""Entries that relatives of Llama (Mistral, Qwen, Granite, Gemma, ...) change the arithmetic with, and the value of
each at which nothing is changed. An entry that is absent or null is neutral too."""


def _refuse_other_arithmetic(config: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """``ValueError`` where a published configuration asks for what this module does not compute."""
    asked = {key: config[key] for key in _NEUTRAL if config.get(key) is not None}
    if asked.get("use_sliding_window") is False:
        asked.pop("sliding_window", None)  # a window that is switched off
    found = [(key, value, _NEUTRAL[key]) for key, value in asked.items() if value != _NEUTRAL[key]]
    found += [("layer_types", kind, "full_attention") for kind in config.get("layer_types") or ()]
    found += [(f"rope {key}", rope[key], 1) for key in ("partial_rotary_factor",) if key in rope]
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        ignored = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
        found += [(f"rope {key}", value, None) for key, value in rope.items() if key not in ignored]
    for key, value, expected in found:
        if value != expected:
            raise ValueError(f"unsupported Llama config: {key}={value!r}, expected {expected!r}")


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """Angle per position of each rotary pair. Shape: (head_dim / 2,), float32, radians per token."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    context = scaling.original_max_position_embeddings
    blend = context / wavelengths - scaling.low_freq_factor
    blend = (blend / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rotary_table(frequencies: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables for positions 0..length-1. Shape of each: (L, E), float32, halves repeated."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=frequencies.device), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(states_BHLE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    first, second = states_BHLE.chunk(2, dim=-1)
    return states_BHLE * cos_LE + torch.cat((-second, first), dim=-1) * sin_LE


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a gain, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D), dtype kept."""
        dtype = hidden_BLD.dtype
        hidden = hidden_BLD.float()
        hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)
        output: Tensor = self.weight * hidden.to(dtype)
        return output


class Attention(nn.Module):
    """Grouped-query attention with rotary embedding, without bias."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, query, key = (
            config.hidden_size,
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.grouped = config.num_attention_heads != config.num_key_value_heads
        self.q_proj = nn.Linear(width, query, bias=False)
        self.k_proj = nn.Linear(width, key, bias=False)
        self.v_proj = nn.Linear(width, key, bias=False)
        self.o_proj = nn.Linear(query, width, bias=False)

    def _heads(self, states_BLX: Tensor) -> Tensor:
        heads: Tensor = states_BLX.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return heads

    def forward(
        self, hidden_BLD: Tensor, rotary: tuple[Tensor, Tensor], mask_BHLL: Tensor | None, causal: bool
    ) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D)."""
        query = _rotate(self._heads(self.q_proj(hidden_BLD)), *rotary)
        key = _rotate(self._heads(self.k_proj(hidden_BLD)), *rotary)
        value = self._heads(self.v_proj(hidden_BLD))
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_BHLL, is_causal=causal, enable_gqa=self.grouped
        )
        output: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D)."""
        output: Tensor = self.down_proj(F.silu(self.gate_proj(hidden_BLD)) * self.up_proj(hidden_BLD))
        return output


class LlamaBlock(nn.Module):
    """One pre-norm block: attention, then SwiGLU, each added to the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden_BLD: Tensor, rotary: tuple[Tensor, Tensor], mask_BHLL: Tensor | None, causal: bool
    ) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D)."""
        attended: Tensor = self.self_attn(self.input_layernorm(hidden_BLD), rotary, mask_BHLL, causal)
        hidden_BLD = hidden_BLD + attended
        transformed: Tensor = self.mlp(self.post_attention_layernorm(hidden_BLD))
        return hidden_BLD + transformed


class BidirectionalLlama(nn.Module):
    """Token ids to contextual states, every token seeing every other (LLM2CLIP stage 1, after LLM2Vec).

    ``causal=True`` gives the ordinary language model, for pre-training and for tests.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._rotary: tuple[Tensor, Tensor] | None = None

    def rotary(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables, kept between calls. Shape: (length, E) each, dtype of ``like``."""
        table = self._rotary
        if table is None or table[0].shape[0] < length or table[0].device != like.device:
            frequencies = rotary_frequencies(self.config).to(like.device)
            table = self._rotary = rotary_table(frequencies, max(length, 64))
        return table[0][:length].to(like.dtype), table[1][:length].to(like.dtype)

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        *,
        causal: bool = False,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Contextual states after the final norm.

        Args:
            input_ids_BL: Shape: (B, L), int64 token ids. Positions are counted from the row's start, padding
                included.
            attention_mask_BL: Shape: (B, L), non-zero where a token may be attended to; ``None`` if nothing
                is padded.
            causal: Let a token see only itself and what stands before it.
            hidden_states: If given, receives the embeddings, then each block's output (the last normalised).

        Returns:
            Shape: (B, L, D), dtype of the weights.
        """
        hidden = self.embed_tokens(input_ids_BL)
        length = input_ids_BL.shape[1]
        rotary = self.rotary(length, hidden)
        mask = None
        if attention_mask_BL is not None and not bool((attention_mask_BL != 0).all()):
            mask = (attention_mask_BL != 0)[:, None, None, :].expand(-1, 1, length, -1)
            if causal:
                mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
            # A padded query must see something, or its softmax is 0/0; its own state is never read.
            mask = mask | torch.eye(length, dtype=torch.bool, device=mask.device)
        collected = [hidden]
        for block in self.layers:
            hidden = block(hidden, rotary, mask, causal and mask is None)
            collected.append(hidden)
        output: Tensor = self.norm(hidden)
        if hidden_states is not None:
            hidden_states.extend([*collected[:-1], output])
        return output


def mean_pool(hidden_BLD: Tensor, pool_mask_BL: Tensor) -> Tensor:
    """Mean of the states the mask selects.

    Args:
        hidden_BLD: Shape: (B, L, D), states after the final norm.
        pool_mask_BL: Shape: (B, L), non-zero at the caption's own tokens; at least one in every row.

    Returns:
        Shape: (B, D), not normalised.
    """
    weights = pool_mask_BL.to(hidden_BLD.dtype).unsqueeze(-1)
    return (hidden_BLD * weights).sum(1) / weights.sum(1).clamp(min=1)
