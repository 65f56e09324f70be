"""Tiny checkpoints of the published layouts, with random weights, as dicts of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llm2clip.encoders.layers.eva02 import Eva02Config, Eva02Tower, rotary_tables
from llm2clip.encoders.layers.llama import TextAdapter

LLM_WIDTH, DIM = 12, 16


def filled(module: torch.nn.Module) -> dict[str, Tensor]:
    """Weights that all matter, drawn anew."""
    return {name: torch.randn(tensor.shape) * 0.3 for name, tensor in module.state_dict().items()}


def adapter(prefix: str, *, dim: int = DIM) -> dict[str, Tensor]:
    weights = filled(TextAdapter(LLM_WIDTH, dim, blocks=2))
    return {prefix + name.removeprefix("adaptor."): tensor for name, tensor in weights.items()}


def openai(*, seed: int = 0) -> dict[str, Tensor]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=DIM)
    tower = filled(CLIPVisionModelWithProjection(config))
    return tower | adapter("text_adapter.adaptor.") | {"logit_scale": torch.tensor(2.6592)}


EVA = Eva02Config(image_size=28, patch_size=7, width=64, depth=2, heads=1, hidden=42, dim=DIM)


def eva02(*, seed: int = 0, tables: bool = True) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    tower = {f"visual.{name}": tensor for name, tensor in filled(Eva02Tower(EVA)).items()}
    cos, sin = rotary_tables(EVA)
    rope = {
        f"visual.{place}rope.freqs_{kind}": table.clone()
        for place in ("", "blocks.0.attn.", "blocks.1.attn.")
        for kind, table in (("cos", cos), ("sin", sin))
    }
    weights = tower | adapter("text.text_adaptor.") | {"logit_scale": torch.tensor(4.6)}
    return {name: tensor.half() for name, tensor in (weights | (rope if tables else {})).items()}


def siglip(*, seed: int = 0) -> dict[str, Tensor]:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(seed)
    sizes = {"hidden_size": DIM, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = filled(SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=28, patch_size=14)))
    weights = {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in tower.items()}
    return weights | adapter("text.text_proj.text_adaptor.") | {"logit_bias": torch.tensor([-10.0])}


SIGLIP_SETTINGS = {"vision_config": {"num_attention_heads": 2}}
MAKERS = {"openai": openai, "eva02": eva02, "siglip2": siglip}
SETTINGS: dict[str, dict[str, object]] = {"openai": {}, "eva02": {}, "siglip2": SIGLIP_SETTINGS}


BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def hollow(shapes: Mapping[str, tuple[int, ...]], stored: str, path: Path) -> Path:
    """A safetensors file that is a header and a hole: as long as the real one, taking no disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + torch.Size(shape).numel() * BYTES[stored]
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return path
