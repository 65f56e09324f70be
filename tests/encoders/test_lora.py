"""Low-rank updates against peft's own merge, against numbers worked out by hand, and broken in every way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm2clip.encoders import ModelError
from llm2clip.encoders.layers.configs import LlamaConfig
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.llm_checkpoint import open_language
from llm2clip.encoders.weights.lora import open_lora

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": MODULES}


def write_base(folder: Path, dtype: torch.dtype = torch.float32, prefix: str = "") -> BidirectionalLlama:
    torch.manual_seed(1)
    model = BidirectionalLlama(LlamaConfig(**SHAPE))
    folder.mkdir()
    save_file(
        {prefix + name: value.to(dtype).contiguous() for name, value in model.state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5} | SHAPE))
    return model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_base(tmp_path / "base")
    return tmp_path / "base"


def write_lora(folder: Path, tensors: dict[str, torch.Tensor], settings: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings or SETTINGS))
    return folder


def pair(module: str = "layers.0.mlp.up_proj", rank: int = 4, prefix: str = "base_model.model.") -> dict:
    torch.manual_seed(2)
    return {
        f"{prefix}{module}.lora_A.weight": torch.randn(rank, 16),
        f"{prefix}{module}.lora_B.weight": torch.randn(24, rank),
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft about transformers
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    ],
)
def test_open_lora_merges_like_peft(tmp_path: Path, settings: dict, nested: bool):
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM, LlamaModel

    torch.manual_seed(3)
    config = TheirConfig(**SHAPE, rms_norm_eps=1e-5, max_position_embeddings=64)
    theirs = (LlamaForCausalLM if nested else LlamaModel)(config)
    theirs.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(
        theirs, peft.LoraConfig(r=4, lora_alpha=8, target_modules=MODULES, **settings)
    )
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.3)
    wrapped.save_pretrained(tmp_path / "lora")
    merged = wrapped.merge_and_unload().state_dict()

    ours = open_language(tmp_path / "base", update=tmp_path / "lora").load().state_dict()
    plain = open_language(tmp_path / "base").load().state_dict()
    changed = 0
    for name, value in ours.items():
        torch.testing.assert_close(value, merged[("model." if nested else "") + name], atol=1e-6, rtol=1e-5)
        changed += not torch.equal(value, plain[name])
    assert changed == 2 * len(MODULES)


def test_open_lora_merges_as_computed_by_hand(base: Path, tmp_path: Path):
    tensors = pair()
    down, up = tensors.values()
    before = load_file(base / "model.safetensors")
    name = "layers.0.mlp.up_proj.weight"
    expected = before[name].double() + 8 / 4 * up.double() @ down.double()
    plan = open_language(base, update=write_lora(tmp_path / "lora", tensors))
    assert plan.found[-1] == "low-rank update of lora merged"
    after = plan.load().state_dict()
    torch.testing.assert_close(after[name].double(), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(after[key], before[key]) for key in before if key != name)


def test_apply_rounds_once(base: Path, tmp_path: Path):
    exact = open_language(base, update=write_lora(tmp_path / "lora", pair())).load().state_dict()
    write_base(tmp_path / "half", torch.bfloat16)
    rounded = load_file(tmp_path / "half" / "model.safetensors")["layers.0.mlp.up_proj.weight"]
    down, up = pair().values()
    got = open_language(tmp_path / "half", update=tmp_path / "lora").load("bfloat16").state_dict()
    expected = (rounded.float() + 2 * up @ down).to(torch.bfloat16)
    assert torch.equal(got["layers.0.mlp.up_proj.weight"], expected)
    assert not torch.equal(expected.float(), exact["layers.0.mlp.up_proj.weight"])


def test_apply_changes_large_matrices_in_pieces(monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path):
    whole = open_language(base, update=write_lora(tmp_path / "lora", pair())).load().state_dict()
    monkeypatch.setattr("llm2clip.encoders.weights.lora._PIECE", 5 * 16)
    pieces = open_language(base, update=tmp_path / "lora").load().state_dict()
    torch.testing.assert_close(whole, pieces, atol=1e-6, rtol=1e-6)


SHAPES = {"layers.0.mlp.up_proj.weight": (24, 16)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"use_dora": True},
            r"use_dora is True, which is not read here \(expected False\); merge it with peft",
        ),
        ({"peft_type": "IA3"}, r"peft_type is 'IA3'.*expected 'LORA'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["norm"]}, r"modules_to_save is \['norm'\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"r": 5}, r"says rank 5 for layers\.0\.mlp\.up_proj, its tensors have 4"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a number"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf, expected a number"),
        ({"rank_pattern": [1]}, r"rank_pattern is '\[1\]', expected an object"),
        (
            {"rank_pattern": {"[": 4}},
            r"rank_pattern has the pattern '\[', which is not read here \(unterminated",
        ),
        ({"alpha_pattern": {"(.+)+x": 4}}, "it has groups, or too many repeats"),
        ({"alpha_pattern": {".*.*.*.*x": 4}}, "it has groups, or too many repeats"),
    ],
)
def test_open_lora_refuses_unsupported_settings(tmp_path: Path, changes: dict, reason: str):
    folder = write_lora(tmp_path / "lora", pair(), SETTINGS | changes)
    with pytest.raises(ModelError, match=reason):
        open_lora(folder, shapes=SHAPES)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "holds no update"),
        (dict(list(pair().items())[:1]), "layers.0.mlp.up_proj.weight has lora_A alone, expected A and B"),
        (
            pair("layers.7.mlp.up_proj"),
            "changes layers.7.mlp.up_proj.weight, which the language model does not",
        ),
        (
            pair() | {"base_model.model.norm.weight": torch.ones(3)},
            "norm.weight, which is no part of a plain LoRA",
        ),
        (
            {k: v.T.contiguous() for k, v in pair().items()},
            r"A F32 \[16, 4\] and B F32 \[4, 24\] .* do not give \[24, 16\]",
        ),
        ({k: v * math.nan for k, v in pair().items()}, "not finite"),
        (
            {k: v[:0] if "lora_A" in k else v[:, :0] for k, v in pair().items()},
            r"A F32 \[0, 16\] and B F32 \[24, 0\] .* do not give \[24, 16\]",
        ),
    ],
)
def test_open_lora_refuses_tensors_that_do_not_fit(tmp_path: Path, tensors: dict, reason: str):
    folder = write_lora(tmp_path / "lora", tensors)
    with pytest.raises(ModelError, match=reason):
        open_lora(folder, shapes=SHAPES)


def test_open_lora_names_missing_files(tmp_path: Path):
    with pytest.raises(ModelError, match=r"adapter_config\.json cannot be read"):
        open_lora(tmp_path, shapes=SHAPES)
    (tmp_path / "adapter_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(ModelError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        open_lora(tmp_path, shapes=SHAPES)


def test_open_lora_reads_pickled_update(base: Path, tmp_path: Path):
    folder = write_lora(tmp_path / "lora", pair())
    expected = open_language(base, update=folder).load().state_dict()
    torch.save(pair(), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    got = open_language(base, update=folder).load().state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
