"""Texts of different lengths through a language model without padding: their tokens stand in one row after the other.

Everything but attention treats tokens one by one, so it is done for all texts at once; attention is done for the texts
of one length at a time, and needs no mask. The arithmetic is that of ``BidirectionalLlama.forward``, which tests hold
it to. For inference: no gradient passes, and large intermediate results are overwritten.

Shape suffixes: T tokens of all texts, D hidden width, X width of one projection, N texts of one length, L their length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from llm2clip.encoders.layers.llama import Attention, BidirectionalLlama, FeedForward, LlamaBlock
    from llm2clip.encoders.text.caption_tokenizer import TextRow

_CPU_TOKENS = 1024
"""Tokens of one pass on a CPU: enough for matrix products at full speed, few enough for its caches."""
_GPU_TOKENS = 16_384
"""Tokens of one pass on a GPU: the hidden layer of an 8B model takes half a gigabyte then."""


@dataclass(frozen=True)
class _Run:
    """Texts of one length that stand one after the other."""

    first: int
    """Its first token among all."""
    texts: int
    """How many."""
    length: int
    """Tokens of each."""
    pooled: int
    """Of which so many are pooled, the last ones."""

    @property
    def tokens(self) -> slice:
        """Where its tokens are."""
        return slice(self.first, self.first + self.texts * self.length)


def tokens_of_a_pass(device: torch.device) -> int:
    """How many tokens are read in one forward pass on a device."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


def passes(lengths: Sequence[int], *, tokens: int) -> Iterator[list[int]]:
    """Positions of texts, the short ones first, in groups of at most so many tokens (or of one text).

    Args:
        lengths: Tokens of each text.
        tokens: Most tokens of a group.
    """
    group: list[int] = []
    size = 0
    for position in sorted(range(len(lengths)), key=lambda position: lengths[position]):
        if group and size + lengths[position] > tokens:
            yield group
            group, size = [], 0
        group.append(position)
        size += lengths[position]
    if group:
        yield group


def pooled_states(model: BidirectionalLlama, rows: Sequence[TextRow], *, device: torch.device) -> Tensor:
    """Mean states of the texts' own tokens, read in passes of a bounded number of tokens.

    Args:
        model: The language model.
        rows: At least one text, each with at least one pooled position.
        device: Where the model is.

    Returns:
        Shape: (len(rows), D), float32, any scale; on ``device``.
    """
    pooled = torch.empty(len(rows), model.config.hidden_size, device=device)
    with torch.inference_mode():
        for chosen in passes([len(row.ids) for row in rows], tokens=tokens_of_a_pass(device)):
            pooled[torch.tensor(chosen, device=device)] = _one_pass(model, [rows[i] for i in chosen], device)
    return pooled


def _one_pass(model: BidirectionalLlama, rows: Sequence[TextRow], device: torch.device) -> Tensor:
    """Mean states of rows in which equal lengths stand together. Shape: (len(rows), D), float32."""
    runs = list(_runs(rows))
    hidden_TD = _states(
        model, torch.tensor([token for row in rows for token in row.ids], device=device), runs
    )
    means = [
        hidden_TD[run.tokens].unflatten(0, (run.texts, run.length))[:, -run.pooled :].float().mean(1)
        for run in runs
    ]
    return torch.cat(means)


def _runs(rows: Sequence[TextRow]) -> Iterator[_Run]:
    first = 0
    for (length, pooled), texts in groupby(rows, key=lambda row: (len(row.ids), row.pooled)):
        count = len(list(texts))
        yield _Run(first, count, length, pooled)
        first += count * length


def _states(model: BidirectionalLlama, ids_T: Tensor, runs: Sequence[_Run]) -> Tensor:
    """Contextual states after the final norm. Shape: (T, D), dtype of the weights."""
    hidden_TD: Tensor = model.embed_tokens(ids_T)
    cos_LE, sin_LE = model.rotary(max(run.length for run in runs), hidden_TD)
    positions_T = torch.cat([torch.arange(run.length, device=ids_T.device).repeat(run.texts) for run in runs])
    # One half of each table, as the halves are equal; between them an axis for the heads.
    half = cos_LE.shape[-1] // 2
    rotary = cos_LE[positions_T, None, :half], sin_LE[positions_T, None, :half]
    for block in model.layers:
        _block(cast("LlamaBlock", block), hidden_TD, rotary, runs)
    states: Tensor = model.norm(hidden_TD)
    return states


def _block(block: LlamaBlock, hidden_TD: Tensor, rotary: tuple[Tensor, Tensor], runs: Sequence[_Run]) -> None:
    """What a block adds, added."""
    hidden_TD.add_(_attended(block.self_attn, block.input_layernorm(hidden_TD), rotary, runs))
    hidden_TD.add_(_transformed(block.mlp, block.post_attention_layernorm(hidden_TD)))


def _attended(
    attention: Attention, normed_TD: Tensor, rotary: tuple[Tensor, Tensor], runs: Sequence[_Run]
) -> Tensor:
    width = attention.head_dim
    query, key, value = (
        projection(normed_TD).unflatten(-1, (-1, width))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    _turn(query, *rotary)
    _turn(key, *rotary)
    mixed = torch.empty_like(query)
    for run in runs:
        asked, keys, values = (
            states[run.tokens].unflatten(0, (run.texts, run.length)).transpose(1, 2)
            for states in (query, key, value)
        )
        seen = F.scaled_dot_product_attention(asked, keys, values, enable_gqa=attention.grouped)
        mixed[run.tokens].unflatten(0, (run.texts, run.length)).copy_(seen.transpose(1, 2))
    output: Tensor = attention.o_proj(mixed.flatten(1))
    return output


def _turn(states_THE: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> None:
    """Rotary embedding, in place."""
    first, second = states_THE.chunk(2, dim=-1)
    turned = second * cos_T1E + first * sin_T1E
    first.mul_(cos_T1E).sub_(second * sin_T1E)
    second.copy_(turned)


def _transformed(mlp: FeedForward, normed_TD: Tensor) -> Tensor:
    gate = F.silu(mlp.gate_proj(normed_TD), inplace=True)
    output: Tensor = mlp.down_proj(gate.mul_(mlp.up_proj(normed_TD)))
    return output
