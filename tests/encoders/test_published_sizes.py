"""Every published vision file at full size, without its weights: names, shapes and totals.

A file with the published names, shapes and dtype is made of nothing but its header (the rest is a hole that takes
no disk), opened as the real one would be, and built on the meta device. Expected totals are those of
LLM2CLIP's repositories: counted from the architectures, and from the sizes of the published files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from llm2clip.encoders import ModelError
from llm2clip.encoders.catalog.entries import encoder_entries, find_encoder, language_of
from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.vision.vision_tower import open_vision

from .checkpoints import BYTES, hollow

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Published:
    """One published file."""

    layout: str
    width: int
    depth: int
    patch: int
    image: int
    hidden: int
    dim: int
    llm: int
    parameters: int
    """In the whole file: tower, projection, adapter, scale."""
    stored: str = "F32"
    size: str = ""
    """Published size of the file, in bytes or in gigabytes as its page says it."""
    heads: int = 16


FILES = {
    "Openai-B-16": Published(
        "openai", 768, 12, 16, 224, 3072, 1280, 4096, 360_552_193, size="1.44 GB", heads=12
    ),
    "Openai-L-14-224": Published("openai", 1024, 24, 14, 224, 4096, 1280, 4096, 578_260_225, size="2.31 GB"),
    "Openai-L-14-336": Published("openai", 1024, 24, 14, 336, 4096, 1280, 4096, 578_587_905, size="2.31 GB"),
    "EVA02-B-16": Published("eva02", 768, 12, 16, 224, 2048, 1280, 4096, 360_623_361, "F16", heads=12),
    "EVA02-L-14-336": Published(
        "eva02", 1024, 24, 14, 336, 2730, 1280, 4096, 578_727_361, "F16", size="1.16 GB"
    ),
    "Llama3.2-1B-EVA02-L-14-336": Published(
        "eva02", 1024, 24, 14, 336, 2730, 1280, 2048, 374_734_273, "F16", size="749702998"
    ),
    "Llama3.1-8B-siglip2-so400m-patch14-224": Published(
        "siglip2", 1152, 27, 14, 224, 4304, 1152, 4096, 700_926_017
    ),
}


def siglip_by_transformers(file: Published) -> Shapes:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    with torch.device("meta"):
        model = SiglipVisionModel(SiglipVisionConfig(**sizes(file)))
    names = {name.removeprefix("vision_model."): t for name, t in model.state_dict().items()}
    return {f"vision_model.{name}": tuple(tensor.shape) for name, tensor in names.items()}


def openai_by_transformers(file: Published) -> Shapes:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes(file), projection_dim=file.dim))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def sizes(file: Published) -> dict[str, int]:
    return {
        "hidden_size": file.width,
        "intermediate_size": file.hidden,
        "num_hidden_layers": file.depth,
        "num_attention_heads": file.heads,
        "image_size": file.image,
        "patch_size": file.patch,
    }


def eva_by_hand(file: Published) -> Shapes:
    """Written down from the list of keys of the released files."""
    w, h, tokens = file.width, file.hidden, (file.image // file.patch) ** 2 + 1
    shapes: Shapes = {
        "cls_token": (1, 1, w),
        "pos_embed": (1, tokens, w),
        "patch_embed.proj.weight": (w, 3, file.patch, file.patch),
        "patch_embed.proj.bias": (w,),
        "norm.weight": (w,),
        "norm.bias": (w,),
        "head.weight": (file.dim, w),
        "head.bias": (file.dim,),
    }
    for n in range(file.depth):
        linear = {"attn.q_proj": (w, w), "attn.k_proj": (w, w), "attn.v_proj": (w, w), "attn.proj": (w, w)}
        linear |= {"mlp.w1": (h, w), "mlp.w2": (h, w), "mlp.w3": (w, h)}
        norms = {"norm1": w, "norm2": w, "attn.inner_attn_ln": w, "mlp.ffn_ln": h}
        shapes |= {f"blocks.{n}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {
            f"blocks.{n}.{name}.bias": shape[:1] for name, shape in linear.items() if "k_proj" not in name
        }
        shapes |= {
            f"blocks.{n}.{name}.{kind}": (size,)
            for name, size in norms.items()
            for kind in ("weight", "bias")
        }
    return {f"visual.{name}": shape for name, shape in shapes.items()}


TOWERS = {"openai": openai_by_transformers, "siglip2": siglip_by_transformers, "eva02": eva_by_hand}
ADAPTERS = {
    "openai": "text_adapter.adaptor.",
    "siglip2": "text.text_proj.text_adaptor.",
    "eva02": "text.text_adaptor.",
}


def tensors(file: Published) -> Shapes:
    with torch.device("meta"):
        adapter = TextAdapter(file.llm, file.dim).state_dict()
    prefix = ADAPTERS[file.layout]
    shapes = {prefix + name.removeprefix("adaptor."): tuple(tensor.shape) for name, tensor in adapter.items()}
    return TOWERS[file.layout](file) | shapes | {"logit_scale": ()}


@pytest.mark.parametrize("name", FILES)
def test_open_vision_of_published_sizes(name: str, tmp_path: Path):
    file = FILES[name]
    shapes = tensors(file)
    plan = open_vision(hollow(shapes, file.stored, tmp_path / "model.safetensors"))
    assert (plan.layout, plan.dim, plan.image_size) == (file.layout, file.dim, file.image)
    assert (plan.shape.width, plan.shape.depth, plan.shape.heads) == (file.width, file.depth, file.heads)
    assert plan.shape.hidden == file.hidden
    assert (plan.adapter.width, plan.adapter.blocks, plan.adapter.expansion) == (file.llm, 4, 2)
    assert plan.adapter.normalize_input == (file.layout != "siglip2")
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert plan.parameters == total == file.parameters
    module = plan.build()
    built = sum(parameter.numel() for parameter in module.parameters())
    adapter = sum(torch.Size(shape).numel() for shape in plan.text.expected.values())
    assert built + adapter + 1 == file.parameters
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not any(buffer.is_meta for buffer in module.buffers())


@pytest.mark.parametrize("name", FILES)
def test_encoder_entries_equal_the_published_sizes(name: str):
    file, row = FILES[name], find_encoder(f"llm2clip-{name.lower()}")
    assert row is not None
    assert (row.layout, row.dim, row.image_size) == (file.layout, file.dim, file.image)
    assert row.parameters == file.parameters
    assert language_of(row).shape.hidden_size == file.llm


def test_encoder_entries_are_all_checked_here():
    assert {row.name for row in encoder_entries() if row.layout} == {
        f"llm2clip-{name.lower()}" for name in FILES
    }


@pytest.mark.parametrize("name", [name for name, file in FILES.items() if file.size.endswith("GB")])
def test_parameters_equal_the_published_file_sizes(name: str):
    file = FILES[name]
    assert f"{file.parameters * BYTES[file.stored] / 1e9:.2f} GB" == file.size


def test_published_1b_file_has_no_rotary_tables():
    """Of its size, what is not weights is 433 bytes a tensor without tables: what torch.save adds (names twice, a
    pickled entry, alignment). With tables 147 would be left, less than the 250 that it takes at least."""
    file = FILES["Llama3.2-1B-EVA02-L-14-336"]
    count = len(tensors(file))
    left = int(file.size) - 2 * file.parameters
    assert 250 < left / count < 600
    tables = 2 * 2 * (file.image // file.patch) ** 2 * 64
    assert (left - tables) / (count + 2 * (file.depth + 1)) < 250


def test_open_vision_refuses_tower_of_wrong_depth(tmp_path: Path):
    """The first file published as EVA02-B-16 had 24 blocks (microsoft/LLM2CLIP issue 35)."""
    file = FILES["EVA02-B-16"]
    path = hollow(tensors(replace(file, depth=24)), "F16", tmp_path / "model.safetensors")
    assert open_vision(path).shape.depth == 24
    with pytest.raises(ModelError, match=r"layers is 12, but visual\.blocks\.\* of .* makes it 24"):
        open_vision(path, settings={"vision_cfg": {"layers": file.depth}})
