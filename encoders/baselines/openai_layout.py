"""Read the tensors of a CLIP named as in OpenAI's program into transformers' modules.

Long-CLIP names both towers so, EVA-CLIP its text tower below ``text.``. Sizes are read from the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm2clip.encoders.vision.tower_detection import Header
from llm2clip.encoders.weights.safetensors_io import check_tensors, of_any_float, read_header, read_tensors

_HEAD_WIDTH = 64
"""Width of a head of every tower of this layout."""
_LAYER = {
    "ln_1.weight": "layer_norm1.weight",
    "ln_1.bias": "layer_norm1.bias",
    "attn.out_proj.weight": "self_attn.out_proj.weight",
    "attn.out_proj.bias": "self_attn.out_proj.bias",
    "ln_2.weight": "layer_norm2.weight",
    "ln_2.bias": "layer_norm2.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
}
"""Of a block: in the file -> in the module."""
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_VISION = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}


@dataclass(frozen=True)
class Place:
    """Where the values of one tensor of a module are in the file."""

    name: str
    """In the file."""
    third: int | None = None
    """Which third of its rows, for queries, keys and values."""
    turned: bool = False
    """Whether rows and columns are exchanged."""

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in the file of a tensor that is ``ours`` in the module."""
        if self.third is not None:
            return (3 * ours[0], *ours[1:])
        return ours[::-1] if self.turned else ours

    def take(self, tensor: Tensor) -> Tensor:
        """The module's part of the file's tensor."""
        if self.third is not None:
            return tensor.chunk(3)[self.third]
        return tensor.T.contiguous() if self.turned else tensor


def text_settings(path: Path, *, prefix: str, activation: str) -> dict[str, Any]:
    """The sizes of a text tower, as ``config.json`` would have them, with ``projection_dim``."""
    header = Header(read_header(path), path)
    tokens, width = header.axes(f"{prefix}token_embedding.weight", 2)
    text = {
        "vocab_size": tokens,
        "max_position_embeddings": header.axes(f"{prefix}positional_embedding", 2)[0],
        # With this number transformers reads the state at the largest token id, as the original does.
        "eos_token_id": 2,
        **_blocks(header, prefix, width, activation),
    }
    return {"text_config": text, "projection_dim": header.axes(f"{prefix}text_projection", 2)[1]}


def vision_settings(path: Path, *, prefix: str, activation: str) -> dict[str, Any]:
    """The sizes of a vision tower; see :func:`text_settings`."""
    header = Header(read_header(path), path)
    width, patch = header.patch(f"{prefix}conv1.weight")
    positions = header.axes(f"{prefix}positional_embedding", 2)[0]
    vision = {
        "patch_size": patch,
        "image_size": patch * header.grid(f"{prefix}positional_embedding", positions=positions, extra=1),
        **_blocks(header, prefix, width, activation),
    }
    return {"vision_config": vision, "projection_dim": header.axes(f"{prefix}proj", 2)[1]}


def _blocks(header: Header, prefix: str, width: int, activation: str) -> dict[str, Any]:
    blocks = f"{prefix}transformer.resblocks."
    return {
        "hidden_size": width,
        "intermediate_size": header.axes(f"{blocks}0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": header.depth(blocks),
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "hidden_act": activation,
    }


def places(expected: Mapping[str, tuple[int, ...]], *, prefix: str) -> dict[str, Place]:
    """Where each tensor of a tower's module is in the file."""
    text = any(name.startswith("text_") for name in expected)
    found = {
        ours: Place(prefix + theirs, turned=ours.endswith("projection.weight"))
        for theirs, ours in (_TEXT if text else _VISION).items()
    }
    layers = f"{'text' if text else 'vision'}_model.encoder.layers."
    back = {ours: theirs for theirs, ours in _LAYER.items()}
    for name in expected:
        if name.startswith(layers):
            number, _, leaf = name.removeprefix(layers).partition(".")
            block = f"{prefix}transformer.resblocks.{number}."
            kind, _, value = leaf.removeprefix("self_attn.").partition("_proj.")
            if kind in ("q", "k", "v"):
                found[name] = Place(f"{block}attn.in_proj_{value}", third="qkv".index(kind))
            else:
                found[name] = Place(block + back[leaf])
    return {name: found[name] for name in expected}


def read_tower_tensors(
    path: Path,
    expected: Mapping[str, tuple[int, ...]],
    *,
    prefix: str,
    others: tuple[str, ...],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The tensors of one tower, strictly: none missing, none too many, every shape right."""
    where = places(expected, prefix=prefix)
    header = read_header(path)
    found = {name: spec for name, spec in header.items() if not name.startswith(others)}
    wanted = {
        place.name: of_any_float(place.shape(expected[name]), header.get(place.name))
        for name, place in where.items()
    }
    check_tensors(found, wanted, path=path, what="the towers it should hold")
    tensors = read_tensors(path, wanted, dtype=dtype)
    return {name: place.take(tensors[place.name]) for name, place in where.items()}
