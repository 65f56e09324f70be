"""A language model in a GGUF file: the same model as in a folder, and one line for what cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm2clip.encoders import ModelError, load_encoder
from llm2clip.encoders.layers.configs import LlamaConfig
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.llm_checkpoint import open_language

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

CONFIG = LlamaConfig(
    vocab_size=262,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rope_theta=5000.0,
)
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    if not name.startswith("layers."):
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    _, number, rest = name.split(".", 2)
    return f"blk.{number}.{PARTS[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in GGUF's order: the two halves of a head's rotary pairs lie beside each other."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write(path: Path, model: BidirectionalLlama, **changed: int) -> None:
    sizes = {"embedding_length": 32, "feed_forward_length": 64, "block_count": 2} | changed
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(sizes["embedding_length"])
    writer.add_feed_forward_length(sizes["feed_forward_length"])
    writer.add_block_count(sizes["block_count"])
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(262)
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *letters, "re", "Ġre", "Ġred", "di", "disc"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["r e", "Ġ re", "Ġre d", "d i"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(0)
    for name, tensor in model.state_dict().items():
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        data = (interleaved(tensor, heads) if heads else tensor).numpy().copy()
        if data.ndim == 2:
            packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name(name), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model() -> BidirectionalLlama:
    torch.manual_seed(0)
    model = BidirectionalLlama(CONFIG).requires_grad_(False).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for layer in (model, *model.layers):
        for norm in (getattr(layer, name, None) for name in ("norm", "input_layernorm")):
            if norm is not None:
                norm.weight.add_(1)
    return model


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LLM2CLIP_HOME", str(tmp_path / "home"))
    return tmp_path


def test_gguf_gives_the_model_it_was_written_from(model, home):
    path = home / "tiny.gguf"
    write(path, model)
    plan = open_language(path)
    assert replace(plan.config, rms_norm_eps=CONFIG.rms_norm_eps) == CONFIG  # stored as float32
    ids = torch.randint(262, (2, 9), generator=torch.Generator().manual_seed(0))
    states, expected = plan.load()(ids), model(ids)
    assert torch.nn.functional.cosine_similarity(states, expected, dim=-1).min() > 0.995
    (before,) = {place.path for place in plan.places.values()}
    stamp = before.stat().st_mtime_ns
    encoder = load_encoder(path)
    vectors = encoder.encode_texts([" red disc", "disc"])
    assert before.stat().st_mtime_ns == stamp
    assert encoder.info.name == "tiny"
    reader = plan.reader()
    rows = reader.batch([" red disc"])
    mean = reader.pool(model(*rows[:2]), rows[2])
    assert float(np.dot(vectors[0], torch.nn.functional.normalize(mean)[0].numpy())) > 0.995


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:300], "is damaged, or no language model that can be read"),
        (lambda data: b"GGUX" + data[4:], "is damaged, or no language model that can be read"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_gguf_that_is_damaged(model, home, spoil, message):
    path = home / "tiny.gguf"
    write(path, model)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ModelError, match=message) as caught:
        load_encoder(path).encode_texts(["a"])
    assert "\n" not in str(caught.value)


def test_gguf_whose_header_lies_about_sizes_allocates_nothing(model, home):
    path = home / "tiny.gguf"
    write(path, model, feed_forward_length=1 << 20)
    with pytest.raises(ModelError, match=r"holds [0-9,]+ numbers, but a model of its sizes has [0-9,]+"):
        open_language(path)
