"""Texts read without padding: the same as one by one, no token more than they have, and bounded passes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.layers.configs import BertConfig, LlamaConfig, RopeScaling
from llm2clip.encoders.layers.llama import BidirectionalLlama, mean_pool
from llm2clip.encoders.text import packed
from llm2clip.encoders.text.caption_tokenizer import TextRow, passes
from llm2clip.encoders.text.packed import pooled_states

CPU = torch.device("cpu")
LENGTHS = [7, 30, 4, 7, 7, 12, 30, 5, 4, 1]


def bert() -> BertEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=40,
        first_position=2,
    )
    return BertEncoder(config).requires_grad_(False).eval()


def model(
    key_heads: int = 2, scaling: RopeScaling | None = None, *, qwen: bool = False
) -> BidirectionalLlama:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        head_dim=8,
        rope_scaling=scaling,
        attention_bias=qwen,
        qk_norm=qwen,
    )
    return BidirectionalLlama(config).requires_grad_(False).eval()


def texts(lengths=LENGTHS) -> list[TextRow]:
    generator = torch.Generator().manual_seed(1)
    return [
        TextRow(torch.randint(50, (length,), generator=generator).tolist(), max(1, length - 3))
        for length in lengths
    ]


def one_by_one(network: torch.nn.Module, rows: list[TextRow]) -> torch.Tensor:
    means = []
    for row in rows:
        pooled = torch.zeros(1, len(row.ids))
        pooled[:, len(row.ids) - row.after - row.pooled : len(row.ids) - row.after] = 1
        means.append(mean_pool(network(torch.tensor([row.ids])).float(), pooled))
    return torch.cat(means)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("tokens", [1, 20, 1024])
def test_pooled_states_reads_each_text_as_if_alone(monkeypatch, key_heads: int, tokens: int):
    monkeypatch.setattr(packed, "_CPU_TOKENS", tokens)
    scaling = RopeScaling(
        factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    )
    llama, rows = model(key_heads, scaling), texts()
    got = pooled_states(llama, rows, device=CPU)
    torch.testing.assert_close(got, one_by_one(llama, rows), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("network", [bert(), model(qwen=True)], ids=["BERT", "Qwen"])
def test_pooled_states_of_other_models_and_first_tokens(network):
    rows = texts() + [TextRow(row.ids, 1, after=len(row.ids) - 1) for row in texts()]
    got = pooled_states(network, rows, device=CPU)
    torch.testing.assert_close(got, one_by_one(network, rows), atol=2e-6, rtol=1e-5)


def test_pooled_states_reads_own_tokens_in_bounded_passes(monkeypatch):
    monkeypatch.setattr(packed, "_CPU_TOKENS", 40)
    llama, read = model(), []
    llama.embed_tokens.register_forward_hook(lambda module, ids, output: read.append(ids[0].numel()))
    pooled_states(llama, texts(), device=CPU)
    assert sum(read) == sum(LENGTHS)
    assert max(read) <= 40
    assert len(read) < len(LENGTHS)


def test_pooled_states_leaves_weights_and_tables_unchanged():
    llama, rows = model(), texts()
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    first, second = (pooled_states(llama, rows, device=CPU) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], value) for name, value in llama.state_dict().items())


@given(
    lengths=st.lists(st.integers(min_value=1, max_value=50), max_size=40),
    tokens=st.integers(min_value=1, max_value=100),
)
def test_passes_hold_every_text_once_sorted_and_bounded(lengths: list[int], tokens: int):
    groups = list(passes(lengths, tokens=tokens))
    order = [position for group in groups for position in group]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[position] for position in order] == sorted(lengths)
    for group in groups:
        assert len(group) == 1 or sum(lengths[position] for position in group) <= tokens
