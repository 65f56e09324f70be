"""What loading costs, measured from outside; what is chosen where memory is short; what is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm2clip.encoders import ModelError
from llm2clip.encoders.catalog.entries import LlamaShape, find_language, language_models
from llm2clip.encoders.layers.configs import LlamaConfig
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.weights import memory_fit as memory
from llm2clip.encoders.weights.memory_fit import needs, pick_choice

from .measured_load import on_linux, weights_loaded

CPU = torch.device("cpu")
BIG = LlamaShape(
    vocab_size=4000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=5,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=64,
)
"""62 million numbers: 250 MB in float32."""

SETUP = """
from llm2clip.encoders.text.llm_checkpoint import open_language
plan = open_language(sys.argv[1], update=sys.argv[3] or None)
load = lambda: plan.load(sys.argv[2])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5} | asdict(BIG))
    )
    with torch.device("meta"):
        shapes = {
            name: value.shape
            for name, value in BidirectionalLlama(LlamaConfig(**asdict(BIG))).state_dict().items()
        }
    save_file({name: torch.full(shape, 0.01) for name, shape in shapes.items()}, folder / "model.safetensors")
    assert (folder / "model.safetensors").stat().st_size > 200_000_000
    update = folder / "lora"
    update.mkdir()
    name = "base_model.model.layers.{}.mlp.up_proj.lora_{}.weight"
    pairs = {
        name.format(layer, side): torch.ones(shape)
        for layer in range(5)
        for side, shape in (("A", (8, 1024)), ("B", (2816, 8)))
    }
    save_file(pairs, update / "adapter_model.safetensors")
    (update / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8}))
    return folder


@on_linux
@pytest.mark.parametrize(("choice", "update"), [("float32", ""), ("bfloat16", "lora")])
def test_load_language_model_takes_little_more_than_its_weights(large: Path, choice: str, update: str):
    weights = weights_loaded(SETUP, str(large), choice, str(large / update) if update else "")
    assert weights == BIG.memory(choice)


def test_llama_shape_memory_of_published_models():
    # 15.0 GB of bfloat16 and 4.94 GB of float32 are what the repositories hold.
    eight, one = (find_language(name).shape for name in ("llama-3-8b-cc", "llama-3.2-1b-cc"))
    assert (eight.parameters, one.parameters) == (7_504_924_672, 1_235_814_400)
    assert round(eight.memory("bfloat16") / 1e9, 1) == 15.0
    assert round(one.memory("float32") / 1e9, 2) == 4.94
    for row in language_models():
        # By hand: the blocks' matrices at one byte or a half, with their scales; the rest in bfloat16.
        matrices = row.parameters - row.shape.vocab_size * row.shape.hidden_size
        assert 1 < (row.shape.memory("int8") - 2 * (row.parameters - matrices)) / matrices < 1.01
        assert 0.52 < (row.shape.memory("int4") - 2 * (row.parameters - matrices)) / matrices < 0.54


@pytest.fixture
def no_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "has_torchao", lambda: False)


@pytest.fixture
def torchao_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "has_torchao", lambda: True)


EIGHT = LlamaShape(**asdict(find_language("llama-3-8b-cc").shape))


@pytest.mark.parametrize(
    ("gigabytes", "fast", "expected"),
    [
        (64, False, "float32"),
        (64, True, "bfloat16"),
        (24, False, "bfloat16"),
        (24, True, "bfloat16"),
        (16, True, "int8"),
        (8, False, "int4"),
    ],
)
@pytest.mark.usefixtures("torchao_there")
def test_pick_choice_takes_the_most_precise_that_fits(
    monkeypatch, caplog, gigabytes: int, fast: bool, expected: str
):
    monkeypatch.setattr(memory, "has_bfloat16", lambda: fast)
    with caplog.at_level(logging.INFO, logger="llm2clip.encoders"):
        picked = pick_choice(EIGHT, name="llama", stored="bfloat16", device=CPU, free=gigabytes * 10**9)
    assert picked == expected
    (record,) = caplog.records
    assert f"llama is loaded as {expected} (" in record.getMessage()
    assert f"of {gigabytes}.0 GB free on cpu)" in record.getMessage()
    assert record.levelno == (logging.WARNING if expected in ("int8", "int4") else logging.INFO)
    if expected == "int8":
        assert record.getMessage().endswith("as stored it takes 18.3 GB; answers differ a little")


@pytest.mark.usefixtures("no_torchao")
def test_pick_choice_keeps_float32_where_it_fits(monkeypatch):
    monkeypatch.setattr(memory, "has_bfloat16", lambda: True)
    one = LlamaShape(**asdict(find_language("llama-3.2-1b-cc").shape))
    picked = [
        pick_choice(one, name="llama", stored="float32", device=CPU, free=gigabytes * 10**9)
        for gigabytes in (16, 5)
    ]
    assert picked == ["float32", "bfloat16"]


@pytest.mark.usefixtures("no_torchao")
def test_pick_choice_refuses_with_the_numbers(monkeypatch):
    monkeypatch.setattr(memory, "has_bfloat16", lambda: False)
    with pytest.raises(ModelError) as caught:
        pick_choice(EIGHT, name="llama-3-8b-cc", stored="bfloat16", device=CPU, free=10 * 10**9)
    assert str(caught.value) == (
        "llama-3-8b-cc does not fit on cpu: 10.0 GB are free, but it needs 35.5 GB as float32, 18.3 GB as bfloat16 "
        "(weights, 15% while loading, 1.0 GB for a batch); with torchao installed (pip install torchao) int8 and "
        "int4 take less. Free memory, or choose an encoder with a smaller language model: "
        "llm2clip-llama3.2-1b-eva02-l-14-336"
    )


@pytest.mark.usefixtures("no_torchao")
def test_needs_on_a_gpu_is_no_wider_than_stored():
    ways = needs(EIGHT, stored="bfloat16", device=torch.device("cuda"))
    assert [way.choice for way in ways] == ["bfloat16"]


def test_check_choice_refuses_what_does_not_fit(monkeypatch, models: Path):
    from llm2clip.encoders import load_encoder

    monkeypatch.setattr(memory, "device_memory", lambda device: 10_000)
    encoder = load_encoder("tiny-openai", dtype="float32")
    with pytest.raises(
        ModelError, match=r"tiny-8b-cc as float32 takes 682 kB on cpu, of which 10.0 kB are free"
    ):
        encoder.encode_texts(["a dog"])
    with pytest.raises(ModelError, match=r"tiny-8b-cc does not fit on cpu: 10.0 kB are free"):
        load_encoder("tiny-openai").encode_texts(["a dog"])
