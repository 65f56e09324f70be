"""Our Llama against transformers' on random configurations."""

from __future__ import annotations

import re

import pytest
import torch

from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.language_config import language_config, llama_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500.0,
}
SHAPES = {
    "plain": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "grouped": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8},
    "one key head": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "wide heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
    "Qwen2": {"num_attention_heads": 4, "num_key_value_heads": 2, "family": "Qwen2"},
    "Qwen3": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "family": "Qwen3"},
    "llama3 rope": {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": LLAMA3},
}
BASE = {
    "vocab_size": 9,
    "hidden_size": 12,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
LENGTHS = (50, 33, 1, 17)
"""Tokens of each row; the longer ones lie beyond the original context of the llama3 rule."""


def pair(shape: dict):
    """transformers' model with random weights, and ours with the same."""
    import transformers

    torch.manual_seed(len(str(shape)))
    family = shape.get("family", "Llama")
    theirs = getattr(transformers, f"{family}Config")(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
        **{key: value for key, value in shape.items() if key != "family"},
    )
    reference = getattr(transformers, f"{family}Model")(theirs).eval()
    for parameter in reference.parameters():
        # The library's own start is so small that attention would hardly matter.
        torch.nn.init.normal_(parameter, std=0.3)
    ours = BidirectionalLlama(llama_config(theirs.to_dict())).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return reference, ours


def rows(*, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.randint(80, (len(LENGTHS), 50)), torch.zeros(len(LENGTHS), 50, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        mask[row, 50 - length :] = 1 if left else 0
        mask[row, :length] = mask[row, :length] if left else 1
    return ids, mask


@pytest.mark.parametrize("left", [False, True], ids=["right padding", "left padding"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@torch.no_grad()
def test_llama_bidirectional_equals_transformers(shape: dict, left: bool):
    reference, ours = pair(shape)
    ids, mask = rows(left=left)
    seen = mask[:, None, None, :].expand(-1, 1, 50, -1) != 0
    additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = torch.arange(50)[None].expand(len(LENGTHS), -1)
    expected = reference(ids, attention_mask=additive, position_ids=positions).last_hidden_state
    torch.testing.assert_close(ours(ids, mask)[mask == 1], expected[mask == 1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@torch.no_grad()
def test_llama_causal_equals_transformers(shape: dict):
    reference, ours = pair(shape)
    ids, mask = rows(left=False)
    collected: list[torch.Tensor] = []
    expected = reference(ids, attention_mask=mask, output_hidden_states=True)
    states = ours(ids, mask, causal=True, hidden_states=collected)
    torch.testing.assert_close(states[mask == 1], expected.last_hidden_state[mask == 1], atol=2e-5, rtol=1e-5)
    assert len(collected) == len(expected.hidden_states) == 4
    for mine, yours in zip(collected, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[mask == 1], yours[mask == 1], atol=2e-5, rtol=1e-5)


def test_llama_rotary_tables_grow_and_do_not_change():
    _, ours = pair(SHAPES["llama3 rope"])
    like = torch.zeros(1)
    short = [table.clone() for table in ours.rotary(10, like)]
    long = ours.rotary(200, like)
    assert long[0].shape == (200, 8)
    assert all(torch.equal(a, b[:10]) for a, b in zip(short, long, strict=True))


def test_llama_config_reads_the_layout_of_transformers_4():
    old = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1}
    old |= {
        "num_attention_heads": 2,
        "rope_theta": 5e5,
        "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
    }
    config = llama_config(old)
    assert (config.rope_theta, config.num_key_value_heads, config.head_dim, config.rms_norm_eps) == (
        5e5,
        2,
        4,
        1e-6,
    )
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu', expected 'silu'"),
        ({"attention_bias": True}, "attention_bias=True, expected False"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "unsupported rope type 'yarn'"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "must be a multiple"),
        ({"head_dim": 3}, "head_dim must be even"),
        ({"model_type": "mistral"}, "model_type='mistral', expected llama or qwen2 or qwen3"),
        ({"sliding_window": 4096}, "sliding_window=4096, expected None"),
        ({"use_sliding_window": True}, "use_sliding_window=True, expected False"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types='sliding_attention', expected",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5, expected 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope partial_rotary_factor=0.5, expected 1"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
            "rope full_attention={'rope_theta': 5.0}",
        ),
        ({"rope_scaling": {"factor": 4.0}}, "rope factor=4.0, expected None"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier=12.0, expected 1"),
        ({"residual_multiplier": 0.22}, "residual_multiplier=0.22, expected 1"),
        ({"attention_multiplier": 0.0156}, "attention_multiplier=0.0156, expected None"),
    ],
)
def test_llama_config_refuses_what_it_does_not_compute(change: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        llama_config(BASE | change)


@pytest.mark.parametrize("family", ["Mistral", "Qwen2Moe", "Qwen3Moe", "Granite", "Gemma"])
def test_llama_config_refuses_relatives_of_llama(family: str):
    import transformers

    config = getattr(transformers, f"{family}Config")().to_dict()
    for read in (llama_config, language_config):
        with pytest.raises(ValueError, match=f"model_type='{config['model_type']}', expected "):
            read(config)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"sliding_window": None, "partial_rotary_factor": 1.0, "embedding_multiplier": 1.0},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"layer_types": ["full_attention"], "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    ],
)
def test_llama_config_reads_neutral_entries(change: dict):
    assert llama_config(BASE | change) == llama_config(BASE)
