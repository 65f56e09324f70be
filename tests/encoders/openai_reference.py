"""Checkpoints named as in OpenAI's CLIP, with random weights, and that program's arithmetic spelt out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

WIDTH, DIM, DEPTH = 64, 24, 2
SYMBOLS = sorted(set("abcdefghijklmnopqrstuvwxyz,!."))
WORDS = [*SYMBOLS, *(s + "</w>" for s in SYMBOLS), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]


def save_tokenizer(folder: Path, *, positions: int) -> None:
    from transformers import CLIPTokenizer

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    merges = [("c", "a"), ("ca", "t</w>")]
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=positions).save_pretrained(folder)


def blocks(prefix: str = "") -> dict[str, Tensor]:
    shapes = {
        "attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "attn.in_proj_bias": (3 * WIDTH,),
        "attn.out_proj.weight": (WIDTH, WIDTH),
        "attn.out_proj.bias": (WIDTH,),
        "mlp.c_fc.weight": (4 * WIDTH, WIDTH),
        "mlp.c_fc.bias": (4 * WIDTH,),
        "mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
        "mlp.c_proj.bias": (WIDTH,),
    }
    tensors = {}
    for number in range(DEPTH):
        block = f"{prefix}transformer.resblocks.{number}."
        tensors |= {block + name: torch.randn(shape) / 8 for name, shape in shapes.items()}
        tensors |= norm_weights(f"{block}ln_1") | norm_weights(f"{block}ln_2")
    return tensors


def norm_weights(name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + torch.randn(WIDTH) / 8, f"{name}.bias": torch.randn(WIDTH) / 8}


def text_tensors(*, positions: int) -> dict[str, Tensor]:
    return {
        "token_embedding.weight": torch.randn(len(WORDS), WIDTH),
        "positional_embedding": torch.randn(positions, WIDTH),
        "text_projection": torch.randn(WIDTH, DIM) / 8,
        **norm_weights("ln_final"),
        **blocks(),
    }


def norm(states: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(states, states.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def quick_gelu(states: Tensor) -> Tensor:
    return states * torch.sigmoid(1.702 * states)


def transformer(
    states: Tensor,
    tensors: dict[str, Tensor],
    prefix: str = "",
    *,
    causal: bool,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Residual blocks with torch's own attention module. Shape: (B, L, WIDTH)."""
    length = states.shape[1]
    mask = torch.full((length, length), -torch.inf).triu(1) if causal else None
    for number in range(DEPTH):
        block = f"{prefix}transformer.resblocks.{number}"
        attention = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        attention.load_state_dict({name: tensors[f"{block}.attn.{name}"] for name in names})
        seen = norm(states, tensors, f"{block}.ln_1")
        states = states + attention(seen, seen, seen, need_weights=False, attn_mask=mask)[0]
        seen, mlp = norm(states, tensors, f"{block}.ln_2"), f"{block}.mlp."
        hidden = activation(F.linear(seen, tensors[f"{mlp}c_fc.weight"], tensors[f"{mlp}c_fc.bias"]))
        states = states + F.linear(hidden, tensors[f"{mlp}c_proj.weight"], tensors[f"{mlp}c_proj.bias"])
    return states


def text_vectors(
    ids: Tensor, positions: Tensor, tensors: dict[str, Tensor], activation: Callable[[Tensor], Tensor]
) -> NDArray[np.float32]:
    """Causal attention, the state of the end token, unit rows. Shapes: (B, L), (L, WIDTH) -> (B, DIM)."""
    states = tensors["token_embedding.weight"][ids] + positions[: ids.shape[1]]
    states = norm(transformer(states, tensors, causal=True, activation=activation), tensors, "ln_final")
    return unit(states[torch.arange(len(ids)), ids.argmax(-1)] @ tensors["text_projection"])


def unit(vectors: Tensor) -> NDArray[np.float32]:
    return F.normalize(vectors.detach(), dim=-1).numpy()
