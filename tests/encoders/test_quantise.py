"""Language models in eight and four bits: near the stored one, as small as the catalogue says, or a clear refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from llm2clip.encoders import ModelError, load_encoder
from llm2clip.encoders.catalog.entries import LlamaShape
from llm2clip.encoders.layers.configs import LlamaConfig
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.llm_checkpoint import open_language
from llm2clip.encoders.weights import quantization as quantise
from llm2clip.encoders.weights.quantization import has_torchao, weight_quantizer

needs_torchao = pytest.mark.skipif(not has_torchao(), reason="torchao is not installed")
SHAPE = LlamaShape(
    vocab_size=300,
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
COSINE = {"int8": 0.9995, "int4": 0.9}
"""Least cosine to the model as stored, of random weights; trained ones do better."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = BidirectionalLlama(LlamaConfig(**asdict(SHAPE)))
    weights = {
        name: torch.randn(value.shape) * 0.04 if value.ndim == 2 else 1 + 0.1 * torch.randn(value.shape)
        for name, value in model.state_dict().items()
    }
    save_file({name: value.bfloat16() for name, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5} | asdict(SHAPE))
    )
    return folder


def held(model: torch.nn.Module) -> int:
    """Bytes of everything a model holds."""
    total = 0
    for parameter in model.parameters():
        inner = getattr(parameter, "tensor_data_names", None)
        parts = [getattr(parameter, name) for name in inner] if inner else [parameter]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


@needs_torchao
@pytest.mark.parametrize("choice", ["int8", "int4"])
def test_load_quantised_is_close_and_small(folder: Path, choice: str):
    plan = open_language(folder)
    ids = torch.randint(0, 300, (4, 12), generator=torch.Generator().manual_seed(1))
    exact, rounded = plan.load("float32"), plan.load(choice)
    with torch.inference_mode():
        theirs, ours = exact(ids), rounded(ids).float()
    assert F.cosine_similarity(ours.flatten(1), theirs.flatten(1)).min() > COSINE[choice]
    assert (ours - theirs).abs().max() > 1e-4
    expected = SHAPE.memory(choice)
    # Norms are held in the dtype of the arithmetic: a few numbers.
    assert expected <= held(rounded) <= expected * 1.01
    assert held(exact) == SHAPE.memory("float32")


@needs_torchao
@pytest.mark.parametrize("choice", ["int8", "int4"])
def test_load_encoder_quantises_the_language_model(models: Path, choice: str):
    texts = ["a red bicycle in the rain", "两只猫在睡觉", "Hund"]
    exact, encoder = load_encoder("tiny-openai", dtype="float32"), load_encoder("tiny-openai", dtype=choice)
    got, expected = encoder.encode_texts(texts), exact.encode_texts(texts)
    assert (got * expected).sum(axis=1).min() > (0.999 if choice == "int8" else 0.9)
    assert encoder.text_tower.dtype == choice
    assert encoder.image_tower.dtype == "float32"
    assert next(encoder.text_tower.adapter.parameters()).dtype == torch.float32


@needs_torchao
@pytest.mark.parametrize("choice", ["int8", "int4"])
def test_weight_quantizer_uses_a_scale_per_row_or_group(folder: Path, choice: str):
    weight = load_file(folder / "model.safetensors")["layers.0.mlp.up_proj.weight"].float()
    layer = open_language(folder).load(choice).layers[0].mlp.up_proj
    got = layer(torch.eye(256, dtype=torch.float32 if choice == "int8" else torch.bfloat16)).float().T
    if choice == "int8":
        step = weight.abs().amax(dim=1, keepdim=True) / 127
    else:
        groups = weight.unflatten(1, (2, 128))
        step = ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(128, dim=1)
    # Half a step, and a little: scales and results are rounded, too.
    assert ((got - weight).abs() / step).max() < (0.51 if choice == "int8" else 0.6)


def test_weight_quantizer_says_how_to_install_torchao(monkeypatch: pytest.MonkeyPatch, folder: Path):
    monkeypatch.setattr(quantise, "has_torchao", lambda: False)
    with pytest.raises(ModelError, match="int8 needs torchao, which is not installed: pip install torchao"):
        open_language(folder).load("int8")


def test_weight_quantizer_names_the_tested_torchao(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantise, "has_torchao", lambda: True)

    def moved(choice: str, device: torch.device) -> None:
        raise ImportError("cannot import name 'quantize_'")

    monkeypatch.setattr(quantise, "_torchao", moved)
    with pytest.raises(
        ModelError, match=r"int4 on cpu needs another torchao \(0\.18 is tested\): cannot import"
    ):
        weight_quantizer("int4", torch.device("cpu"))


@needs_torchao
@pytest.mark.parametrize(("choice", "dtype"), [("int8", torch.float32), ("int4", torch.bfloat16)])
@pytest.mark.parametrize("shape", [(64, 256), (192, 256), (208, 256), (1040, 128)])
def test_weight_quantizer_by_slabs_equals_the_whole(monkeypatch, choice, dtype, shape):
    torch.manual_seed(0)
    weight, inputs = torch.randn(shape).to(dtype), torch.randn(3, shape[1]).to(dtype)
    found = []
    for slab in (1 << 40, 1):
        monkeypatch.setattr(quantise, "_SLAB", slab)
        linear = torch.nn.Linear(shape[1], shape[0], bias=False)
        linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        weight_quantizer(choice, torch.device("cpu"))(linear)
        found.append((linear(inputs), linear.weight))
    (whole, whole_weight), (pieces, pieces_weight) = found
    assert torch.equal(whole, pieces)
    assert whole_weight.shape == pieces_weight.shape == shape
    for name in whole_weight.tensor_data_names:
        assert torch.equal(getattr(whole_weight, name), getattr(pieces_weight, name))


def test_import_quietly_prints_nothing():
    """In a process of its own: it speaks only the first time."""
    code = "from llm2clip.encoders.layers.transformers_modules import import_quietly; import_quietly()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
