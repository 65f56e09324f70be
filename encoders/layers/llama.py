"""The text path of LLM2CLIP: a Llama (or Qwen2, Qwen3) with attention both ways and no head, and the adapter behind it.

Parameter names, shapes and operations of the Llama are those of transformers' ``LlamaModel``, so its checkpoints load
unchanged; a test holds the two equal. Importing transformers' own pulls in torch.distributed, torch._dynamo and scipy,
which takes twice as long as everything else in a cold search. The adapter is the released ``TextProj`` (LLM2CLIP,
section 4.1: an inverted bottleneck, after FuseMix); golden cases b and e.

Shape suffixes: B texts, L token positions, D hidden width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.encoders.layers.configs import LlamaConfig


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
    """Grouped-query attention with rotary embedding."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, query, key = (
            config.hidden_size,
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.grouped = config.num_attention_heads != config.num_key_value_heads
        bias = config.attention_bias
        self.q_proj = nn.Linear(width, query, bias=bias)
        self.k_proj = nn.Linear(width, key, bias=bias)
        self.v_proj = nn.Linear(width, key, bias=bias)
        self.o_proj = nn.Linear(query, width, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values before the rotary embedding. Shape: (..., D) -> (..., H or K, E) each."""
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value

    def forward(
        self, hidden_BLD: Tensor, rotary: tuple[Tensor, Tensor], mask_BHLL: Tensor | None, causal: bool
    ) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D)."""
        query, key, value = (part.transpose(1, 2) for part in self.heads(hidden_BLD))
        query, key = _rotate(query, *rotary), _rotate(key, *rotary)
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
        """Contextual states after the final norm. Shapes: (B, L), int64, and (B, L) -> (B, L, D).

        Positions are counted from the row's start, padding included. ``hidden_states`` receives the embeddings, then
        each block's output (the last normalised).
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
    """Mean of the states the mask selects. Shapes: (B, L, D), (B, L) -> (B, D), not normalised."""
    weights = pool_mask_BL.to(hidden_BLD.dtype).unsqueeze(-1)
    return (hidden_BLD * weights).sum(1) / weights.sum(1).clamp(min=1)


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
        """Shape: (B, width), pooled states of any scale -> (B, dim), not normalised."""
        if self.normalize_input:
            features_BD = F.normalize(features_BD, dim=-1)
        projected: Tensor = self.adaptor(features_BD)
        return projected
