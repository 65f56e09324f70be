"""Golden case a: the EVA02 tower step by step, and the released ``.pt`` layout as a whole."""

from __future__ import annotations

import pytest
import torch

from llm2clip.encoders.eva02 import Eva02Config, Eva02Tower, rotary_tables


def is_table(name: str) -> bool:
    return ".rope.freqs_" in name


@pytest.fixture
def case(golden, eva02_name):
    return golden.case(f"a_eva02/{eva02_name}")


@pytest.fixture
def tower(case) -> Eva02Tower:
    recorded = case.json("config.json")
    vision = recorded["vision_cfg"]
    tower = Eva02Tower(
        Eva02Config(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=vision["width"],
            depth=vision["layers"],
            heads=vision["width"] // vision["head_width"],
            hidden=recorded["derived"]["mlp_hidden"],
            dim=recorded["embed_dim"],
            rope_grid=vision["pt_hw_seq_len"],
        )
    )
    weights = {
        name.removeprefix("visual."): tensor.float()
        for name, tensor in case.tensors("weights.safetensors").items()
        if name.startswith("visual.") and not is_table(name)
    }
    tower.load_state_dict(weights, strict=True)
    return tower.eval()


@torch.no_grad()
def test_every_step(case, tower, eva02_name):
    expected = case.tensors("expected.safetensors")
    pixels = case.tensors("inputs.safetensors")["pixel_values"]

    def check(key, got):
        case.check(f"{eva02_name}: {key}", got, expected[key])

    check("patch_embed", tower.patch_embed(pixels))
    hidden = tower.embed(pixels)
    check("block_input", hidden)
    tables = tower.rope_cos, tower.rope_sin
    first = tower.blocks[0]
    query, key = first.attn.rotated(first.norm1(hidden), *tables)
    check("block0.q_rope", query)
    check("block0.k_rope", key)
    check("block0.attn_out", first.attn(first.norm1(hidden), *tables))
    attended = hidden + first.attn(first.norm1(hidden), *tables)
    check("block0.mlp_out", first.mlp(first.norm2(attended)))
    for number, block in enumerate(tower.blocks):
        hidden = block(hidden, *tables)
        check(f"block{number}", hidden)
    check("norm_cls", tower.norm(hidden[:, 0]))
    check("image_features", tower(pixels))


@torch.no_grad()
def test_in_double_precision(case, tower, eva02_name):
    """With the tables as float32 gives them, so what is left is the rounding of the recorded numbers."""
    pixels = case.tensors("inputs.safetensors")["pixel_values"]
    expected = case.tensors("expected.safetensors")["image_features_fp64"]
    got = tower.double()(pixels.double())
    case.check(f"{eva02_name}: image_features_fp64", got, expected, atol=1e-9, rtol=1e-9)


def test_rotary_tables_are_those_of_the_file(case, tower, eva02_name):
    weights = case.tensors("weights.safetensors")
    tables = {name: tensor for name, tensor in weights.items() if is_table(name)}
    cos, sin = rotary_tables(tower.config)
    for name, table in tables.items():
        ours = cos if name.endswith("_cos") else sin
        # The file has them in the dtype of its weights.
        case.check(f"{eva02_name}: {name}", ours.to(table.dtype), table)


@torch.no_grad()
def test_tables_rounded_to_half_precision_are_told_apart(case, tower, eva02_name):
    expected = case.tensors("expected.safetensors")
    if "rope_from_file/image_features" not in expected:
        pytest.skip(f"{eva02_name} is not stored in half precision")
    pixels = case.tensors("inputs.safetensors")["pixel_values"]
    weights = case.tensors("weights.safetensors")
    tower.rope_cos = weights["visual.rope.freqs_cos"].float()
    tower.rope_sin = weights["visual.rope.freqs_sin"].float()
    got = tower(pixels)
    case.check(f"{eva02_name}: rope_from_file/image_features", got, expected["rope_from_file/image_features"])
    assert (got - expected["image_features"]).abs().max() > 2e-4
