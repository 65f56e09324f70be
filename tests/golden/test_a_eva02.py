"""Golden case a: the EVA02 tower step by step, and the released ``.pt`` layout as a whole."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from llm2clip.encoders.layers.eva02 import Eva02Config, Eva02Tower, rotary_tables
from llm2clip.encoders.vision.vision_tower import open_vision
from llm2clip.encoders.weights.pickle_conversion import convert_checkpoint


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
def test_eva02_every_step(case, tower, eva02_name):
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
def test_eva02_in_double_precision(case, tower, eva02_name):
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
def test_eva02_differs_with_tables_in_half_precision(case, tower, eva02_name):
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


@torch.no_grad()
def check_whole(case, plan, name) -> None:
    inputs, expected = case.tensors("inputs.safetensors"), case.tensors("expected.safetensors")
    images = plan.load()(inputs["pixel_values"])
    texts = plan.load_adapter()(inputs["llm_features"])
    case.check(f"{name}: image_features", images, expected["image_features"])
    case.check(f"{name}: text_features", texts, expected["text_features"])
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    case.check(f"{name}: image_features_normalized", images, expected["image_features_normalized"])
    case.check(f"{name}: text_features_normalized", texts, expected["text_features_normalized"])
    scale = torch.tensor(plan.logit_scale()).exp()
    case.check(f"{name}: logits_per_image", scale * images @ texts.T, expected["logits_per_image"])


def test_open_vision_reads_the_whole_file(case, eva02_name):
    plan = open_vision(case.folder / "weights.safetensors")
    recorded = case.json("config.json")
    assert (plan.layout, plan.dim) == ("eva02", recorded["embed_dim"])
    assert (plan.image_size, plan.shape.width) == tuple(
        recorded["vision_cfg"][key] for key in ("image_size", "width")
    )
    assert plan.shape.depth == recorded["vision_cfg"]["layers"]
    assert plan.adapter.width == recorded["text_cfg"]["llm_embedding_dim"]
    check_whole(case, plan, eva02_name)


def test_open_vision_without_configuration_uses_the_tables(case, eva02_name, tmp_path):
    copy = shutil.copy(case.folder / "weights.safetensors", tmp_path)
    plan = open_vision(tmp_path / copy)
    assert plan.shape.rope_grid == case.json("config.json")["vision_cfg"]["pt_hw_seq_len"]
    check_whole(case, plan, eva02_name)


def test_open_vision_without_tables_uses_the_configuration(case, eva02_name, tmp_path):
    shutil.copy(case.folder / "config.json", tmp_path)
    weights = {name: t for name, t in case.tensors("weights.safetensors").items() if not is_table(name)}
    save_file(weights, tmp_path / "weights.safetensors")
    plan = open_vision(tmp_path / "weights.safetensors")
    assert "no rotary tables in the file" in plan.found
    check_whole(case, plan, eva02_name)


def test_convert_checkpoint_of_the_published_format(case, eva02_name, tmp_path):
    """A bare dict that ``torch.save`` wrote."""
    torch.save(case.tensors("weights.safetensors"), tmp_path / "model.pt")
    path = convert_checkpoint(tmp_path / "model.pt", tmp_path / "cache")
    check_whole(case, open_vision(path, settings=case.json("config.json")), eva02_name)
