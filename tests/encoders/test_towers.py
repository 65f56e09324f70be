"""Published towers from their tensors alone: against transformers, timm's recorded numbers, and arithmetic."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm2clip.encoders import ModelError
from llm2clip.encoders.vision.vision_tower import PREFIXES, open_adapter, open_vision

from .checkpoints import DIM, LLM_WIDTH, MAKERS, SETTINGS, SIGLIP_SETTINGS, adapter, eva02, openai, siglip

DATA = Path(__file__).parent / "data"


def saved(tensors: dict[str, torch.Tensor], folder: Path, **settings: object) -> Path:
    save_file(tensors, folder / "model.safetensors")
    if settings:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder / "model.safetensors"


@pytest.mark.parametrize("layout", MAKERS)
def test_open_vision_reads_sizes_from_the_header(layout: str, tmp_path: Path):
    tensors = MAKERS[layout]()
    plan = open_vision(saved(tensors, tmp_path), settings=SETTINGS[layout])
    assert (plan.layout, plan.dim, plan.image_size, plan.shape.depth) == (layout, DIM, 28, 2)
    assert plan.shape.width == (DIM if layout == "siglip2" else 64)
    assert (plan.adapter.width, plan.adapter.dim, plan.adapter.blocks, plan.adapter.expansion) == (
        12,
        DIM,
        2,
        2,
    )
    trained = {name: tensor for name, tensor in tensors.items() if "rope" not in name}
    assert plan.parameters == sum(tensor.numel() for tensor in trained.values())
    assert (plan.logit_scale() is None) == (layout == "siglip2")


@pytest.mark.parametrize("layout", MAKERS)
def test_vision_plan_load_uses_every_weight(layout: str, tmp_path: Path):
    """Another value anywhere gives another vector; the images are many, so that no change is lost."""
    torch.manual_seed(1)
    tensors = MAKERS[layout]()
    pixels, states = torch.randn(4, 3, 28, 28), torch.randn(4, LLM_WIDTH)

    def vectors() -> torch.Tensor:
        plan = open_vision(saved(tensors, tmp_path), settings=SETTINGS[layout])
        with torch.no_grad():
            return torch.cat((plan.load()(pixels), plan.load_adapter()(states)), dim=1)

    before = vectors()
    for name in [*tensors][:: 1 if layout == "eva02" else 3]:
        # A bias of the keys moves every score of a query alike, which softmax does not see.
        if "logit" in name or "rope" in name or name.endswith("k_proj.bias"):
            continue
        old = tensors[name]
        tensors[name] = old + torch.randn(old.shape).to(old.dtype)
        assert (vectors() - before).abs().max() > 1e-4, name
        tensors[name] = old


def test_vision_plan_load_openai_equals_transformers(tmp_path: Path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    tensors = openai()
    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=28,
        patch_size=14,
        projection_dim=DIM,
        hidden_act="quick_gelu",
    )
    theirs = CLIPVisionModelWithProjection(config).eval()
    theirs.load_state_dict({name: t for name, t in tensors.items() if name.startswith("vis")}, strict=True)
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        ours = open_vision(saved(tensors, tmp_path)).load()(pixels)
        assert (ours - theirs(pixel_values=pixels).image_embeds).abs().max() < 1e-5


def test_open_vision_accepts_projection_bias(tmp_path: Path):
    tensors, bias = openai(), torch.randn(DIM)
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        before = open_vision(saved(tensors, tmp_path)).load()(pixels)
        plan = open_vision(saved(tensors | {"visual_projection.bias": bias}, tmp_path))
        assert "visual_projection with bias" in plan.found[0]
        assert (plan.load()(pixels) - before - bias).abs().max() < 1e-5


def test_vision_plan_load_siglip_equals_transformers(tmp_path: Path):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    tensors = siglip()
    config = SiglipVisionConfig(
        hidden_size=DIM,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    theirs = SiglipVisionModel(config).eval()
    prefix = "vision_model." if next(iter(theirs.state_dict())).startswith("vision_model.") else ""
    own = {prefix + n.removeprefix("vision_model."): t for n, t in tensors.items() if n.startswith("vision_")}
    theirs.load_state_dict(own, strict=True)
    pixels = torch.randn(3, 3, 28, 28)
    plan = open_vision(saved(tensors, tmp_path), settings=SIGLIP_SETTINGS)
    with torch.no_grad():
        assert (plan.load()(pixels) - theirs(pixel_values=pixels).pooler_output).abs().max() < 1e-5
    assert (plan.shape.activation, plan.adapter.normalize_input) == ("gelu_pytorch_tanh", False)


def test_open_vision_reads_siglip_named_as_in_timm():
    """Recorded with timm 1.0.31: a random ``VisionTransformer`` with ``global_pool='map'``."""
    expected = load_file(DATA / "siglip_timm_expected.safetensors")
    plan = open_vision(DATA / "siglip_timm.safetensors", settings=SIGLIP_SETTINGS)
    assert (plan.layout, plan.dim, plan.image_size, plan.shape.depth) == ("siglip2", 16, 28, 2)
    assert (plan.scalars, plan.adapter, plan.load_adapter()) == (("logit_scale", "logit_bias"), None, None)
    with torch.no_grad():
        assert (plan.load()(expected["pixels"]) - expected["vectors"]).abs().max() < 1e-5
        settings = {"vision_config": {"num_attention_heads": 2, "hidden_act": "gelu_pytorch_tanh"}}
        other = open_vision(plan.path, settings=settings).load()(expected["pixels"])
    assert (other - expected["vectors"]).abs().max() > 1e-4


def test_vision_plan_load_shares_no_memory():
    model = open_vision(DATA / "siglip_timm.safetensors", settings=SIGLIP_SETTINGS).load()
    for parameter in model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


@pytest.mark.parametrize("prefix", PREFIXES)
def test_open_adapter_accepts_each_prefix(prefix: str, tmp_path: Path):
    weights = adapter(prefix)
    plan = open_adapter(saved(weights, tmp_path))
    assert plan.prefix == prefix
    assert plan.config.normalize_input == (prefix != "text.text_proj.text_adaptor.")
    assert open_adapter(plan.path, normalize_input=False).config.normalize_input is False


def test_open_adapter_accepts_each_layer_name(tmp_path: Path):
    weights, states = adapter(PREFIXES[1]), torch.randn(3, LLM_WIDTH)
    expected = open_adapter(saved(weights, tmp_path)).load()(states)
    renamed = {n.replace(".fn.3.", ".fn.2.").replace(".ln.", ".norm."): t for n, t in weights.items()}
    plan = open_adapter(saved(renamed, tmp_path))
    assert torch.equal(plan.load()(states), expected)
    assert "(layers fn.0, fn.2, norm)" in plan.found


def test_open_vision_reads_old_biases(tmp_path: Path):
    tensors, pixels = eva02(), torch.randn(2, 3, 28, 28)
    expected = open_vision(saved(tensors, tmp_path)).load()(pixels)
    old = {re.sub(r"attn\.([qv])_proj\.bias", r"attn.\1_bias", name): t for name, t in tensors.items()}
    plan = open_vision(saved(old, tmp_path))
    assert torch.equal(plan.load()(pixels), expected)
    assert plan.found[0].endswith("biases named q_bias, v_bias")


@pytest.mark.parametrize("grid", [1, 4, 7, 16, 24])
def test_open_vision_measures_the_rotary_grid(grid: int, tmp_path: Path):
    from dataclasses import replace

    from llm2clip.encoders.layers.eva02 import rotary_tables

    from .checkpoints import EVA

    cos, sin = rotary_tables(replace(EVA, rope_grid=grid))
    tables = {"visual.rope.freqs_cos": cos.half(), "visual.rope.freqs_sin": sin.half()}
    path = saved(eva02(tables=False) | tables, tmp_path)
    assert open_vision(path).shape.rope_grid == grid
    said = open_vision(path, settings={"vision_cfg": {"pt_hw_seq_len": grid + 1}})
    with pytest.raises(ModelError, match=r"visual\.rope\.freqs_cos is not the rotary table of a "):
        said.load()


def test_open_vision_ignores_tensors_of_another_part(tmp_path: Path):
    tower = {name: t for name, t in eva02().items() if name.startswith("visual.")}
    path = saved(tower | {"text.positional_embedding": torch.zeros(3)}, tmp_path)
    with pytest.raises(ModelError, match=r"unexpected tensors: text\.positional_embedding"):
        open_vision(path)
    assert open_vision(path, ignore=("text.",)).parameters == open_vision(saved(tower, tmp_path)).parameters


def test_open_vision_finds_adapter_among_ignored_tensors(tmp_path: Path):
    assert open_vision(saved(eva02(), tmp_path), ignore=("text.",)).adapter is not None


def test_open_vision_ignores_position_ids(tmp_path: Path):
    extra = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    assert open_vision(saved(openai() | extra, tmp_path)).parameters == sum(
        t.numel() for t in openai().values()
    )


def test_load_adapter_does_not_read_the_tower(tmp_path: Path):
    tensors = openai()
    tensors["vision_model.post_layernorm.weight"][3] = float("nan")
    plan = open_vision(saved(tensors, tmp_path))
    assert plan.load_adapter() is not None
    with pytest.raises(ModelError, match=r"not finite in: vision_model\.post_layernorm\.weight"):
        plan.load()


CONFIGURED = {"vision_config": {"hidden_size": 64, "num_hidden_layers": 2}, "projection_dim": DIM}


def test_open_vision_accepts_agreeing_configuration(tmp_path: Path):
    assert open_vision(saved(openai(), tmp_path, **CONFIGURED, text_config={"x": 1})).dim == DIM


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"vision_config": {"hidden_size": 65}},
            r"hidden_size is 65, but vision_model\.embeddings\.patch_embedding",
        ),
        (
            {"vision_config": {"intermediate_size": 41}},
            r"41, but vision_model\.encoder\.layers\.0\.mlp\.fc1\.weight",
        ),
        (
            {"vision_config": {"num_hidden_layers": 3}},
            r"is 3, but vision_model\.encoder\.layers\.\* of .* makes it 2",
        ),
        ({"vision_config": {"patch_size": 7}}, r"patch_size is 7, but .* makes it 14"),
        (
            {"vision_config": {"image_size": 224}},
            r"224, but vision_model\.embeddings\.position_embedding\.weight",
        ),
        ({"projection_dim": 512}, r"projection_dim is 512, but visual_projection\.weight of .* makes it 16"),
        (
            {"vision_config": {"num_attention_heads": 3}},
            r"says that there are 3 heads: .*patch_embedding\.weight of .* is 64 wide",
        ),
        (
            {"vision_config": {"hidden_size": "64"}},
            r"hidden_size: expected a positive whole number, got '64'",
        ),
        (
            {"vision_config": {"hidden_size": True}},
            r"hidden_size: expected a positive whole number, got True",
        ),
        ({"vision_config": {"hidden_size": -64}}, r"hidden_size: expected a positive whole number, got -64"),
        ({"vision_config": [64]}, r"vision_config: expected an object, got list"),
        (
            {"vision_config": {"hidden_act": "relu"}},
            r"hidden_act: expected one of .*'quick_gelu'.*, got 'relu'",
        ),
        ({"vision_cfg": {"rope": False}}, r"vision_cfg\.rope: expected true as in EVA02, got False"),
        ({"vision_cfg": {"width": 64, "mlp_ratio": "2"}}, r"mlp_ratio: expected a number, got '2'"),
        (
            {"vision_cfg": {"width": 64, "mlp_ratio": 2.5}},
            r"width \* vision_cfg\.mlp_ratio is 160, but .* makes it 40",
        ),
    ],
)
def test_open_vision_refuses_disagreeing_configuration(
    settings: dict[str, object], message: str, tmp_path: Path
):
    path = saved(openai(), tmp_path, **settings)
    with pytest.raises(ModelError, match=message) as caught:
        open_vision(path)
    assert str(tmp_path) in str(caught.value)


def test_open_vision_refuses_unknown_layouts(tmp_path: Path):
    cases = [
        (
            {"weight": torch.zeros(3)},
            r"is of no known layout: expected tensors vision_model\.\*, .* got weight",
        ),
        ({}, "is of no known layout: .* got no tensor"),
        (
            {"vision_model.encoder.layers.0.self_attn.inner_attn_ln.weight": torch.zeros(3)},
            r"is an EVA02 tower as converted for transformers, .* take the \.pt file",
        ),
    ]
    for tensors, message in cases:
        with pytest.raises(ModelError, match=message):
            open_vision(saved(tensors, tmp_path))


def test_open_vision_refuses_adapter_of_another_tower(tmp_path: Path):
    path = saved(openai() | adapter("text_adapter.adaptor.", dim=20), tmp_path)
    with pytest.raises(
        ModelError,
        match=r"vectors of 20 \(text_adapter\.adaptor\.3\.weight\), the openai tower of 16 \(visual_",
    ):
        open_vision(path)


def test_open_vision_refuses_two_adapters(tmp_path: Path):
    with pytest.raises(ModelError, match="holds two text adapters: "):
        open_vision(saved(openai() | adapter("text.text_adaptor."), tmp_path))


def test_open_adapter_refuses_file_without_adapter(tmp_path: Path):
    with pytest.raises(ModelError, match="holds no text adapter: expected tensors "):
        open_adapter(saved({"weight": torch.zeros(3)}, tmp_path))
