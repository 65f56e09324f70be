"""Published language models: every layout of the weights gives the same model, anything amiss is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm2clip.encoders import ModelError
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.language_config import llama_config
from llm2clip.encoders.text.llm_checkpoint import open_language

CONFIG = {
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = BidirectionalLlama(llama_config(CONFIG)).state_dict()
    # Rounded to bfloat16, so that every layout holds the same numbers.
    return {name: torch.randn(value.shape).bfloat16().float() for name, value in state.items()}


@pytest.fixture
def states(weights) -> torch.Tensor:
    model = BidirectionalLlama(llama_config(CONFIG))
    model.load_state_dict(weights)
    return model(IDS).detach()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return tmp_path


def write_shards(folder: Path, weights: dict[str, torch.Tensor], *, count: int = 3) -> dict[str, str]:
    names = sorted(weights)
    listed = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file({name: weights[name] for name in names[number::count]}, folder / file)
        listed |= dict.fromkeys(names[number::count], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}), encoding="utf-8")
    return listed


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharded", [False, True])
def test_open_language_reads_every_layout(folder, weights, states, prefix, stored, sharded):
    named = {prefix + name: value.to(stored) for name, value in weights.items()}
    if sharded:
        write_shards(folder, named)
    else:
        save_file(named, folder / "model.safetensors")
    model = open_language(folder).load()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert torch.equal(model(IDS), states)


def test_open_language_leaves_out_head_and_rotary_tables(folder, weights, states):
    extra = {
        "lm_head.weight": torch.ones(11, 8),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    save_file(
        {f"model.{name}": value for name, value in weights.items()} | extra, folder / "model.safetensors"
    )
    assert torch.equal(open_language(folder).load()(IDS), states)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "missing tensors: norm.weight"),
        (
            {"layers.2.mlp.up_proj.weight": torch.ones(12, 8)},
            "unexpected tensors: layers.2.mlp.up_proj.weight",
        ),
        ({"norm.weight": torch.ones(9)}, r"norm.weight is F32 \[9\], expected F32 \[8\]"),
        ({"norm.weight": torch.ones(8, dtype=torch.int64)}, r"norm.weight is I64 \[8\], expected F32 \[8\]"),
        ({"norm.weight": torch.full((8,), torch.nan)}, "not finite in: norm.weight"),
        ({"model.norm.weight": torch.ones(8)}, "holds norm.weight twice"),
    ],
)
def test_open_language_names_a_wrong_tensor(folder, weights, change, message):
    changed = {name: value for name, value in (weights | change).items() if value is not None}
    save_file(changed, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        open_language(folder).load()


def test_open_language_refuses_shards_that_contradict_their_index(folder, weights):
    listed = write_shards(folder, weights)
    index = folder / "model.safetensors.index.json"
    wrong = listed | {"norm.weight": "model-00001-of-00003.safetensors"}
    assert wrong != listed
    index.write_text(json.dumps({"weight_map": wrong}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"norm\.weight should be in model-00001-of-00003\.safetensors"):
        open_language(folder).load()
    index.write_text(json.dumps({"weight_map": {"norm.weight": "../x.safetensors"}}), encoding="utf-8")
    with pytest.raises(ModelError, match="files outside its folder"):
        open_language(folder).load()
    index.write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(ModelError, match="no weight_map"):
        open_language(folder).load()
    index.write_text(json.dumps({"weight_map": listed}), encoding="utf-8")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"names files that are not there: model-00002-of-00003\.safetensors"
    ):
        open_language(folder).load()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected an object, got list"),
        (json.dumps(CONFIG | {"hidden_act": "gelu"}), "hidden_act='gelu', expected 'silu'"),
        (json.dumps({"model_type": "llama"}), "no language model that can be read: no '"),
    ],
)
def test_open_language_names_a_wrong_config(folder, weights, config, message):
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        open_language(folder).load()


def test_open_language_names_missing_files(folder, tmp_path):
    with pytest.raises(
        ModelError, match=r"has no weights: expected model\.safetensors or model\.safetensors\.index\.json"
    ):
        open_language(folder).load()
    with pytest.raises(ModelError, match=r"config\.json cannot be read: No such file"):
        open_language(tmp_path / "nowhere").load()
