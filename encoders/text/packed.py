"""Language models of both kinds, and their forward pass without padding.

The tokens of texts of different lengths stand in one row after the other. Everything but attention treats tokens one by
one, so it is done for all texts at once; attention is done for the texts of one length at a time, and needs no mask.
Results are those of the modules' own ``forward``, to which a test holds them. For inference: no gradient passes, and
large intermediate results are overwritten.

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

from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.layers.configs import BertConfig, LlamaConfig
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.caption_tokenizer import passes

if TYPE_CHECKING:
    from llm2clip.encoders.layers.bert import BertBlock
    from llm2clip.encoders.layers.llama import Attention, FeedForward, LlamaBlock
    from llm2clip.encoders.text.caption_tokenizer import TextRow

LanguageConfig = LlamaConfig | BertConfig
LanguageModule = BidirectionalLlama | BertEncoder

_CPU_TOKENS = 1024
"""Tokens of one pass on a CPU: enough for matrix products at full speed, few enough for its caches."""
_GPU_TOKENS = 16_384
"""Tokens of one pass on a GPU: the hidden layer of an 8B model takes half a gigabyte then."""


def build_language(config: LanguageConfig) -> LanguageModule:
    """A module of that shape, with new weights."""
    return BidirectionalLlama(config) if isinstance(config, LlamaConfig) else BertEncoder(config)


@dataclass(frozen=True)
class Run:
    """Consecutive texts of one length."""

    first: int
    """Index of its first token."""
    texts: int
    """Number of texts."""
    length: int
    """Tokens of each."""
    pooled: int
    """Pooled tokens of each, which stand together."""
    after: int
    """Tokens of each after those."""

    @property
    def tokens(self) -> slice:
        """Slice of its tokens."""
        return slice(self.first, self.first + self.texts * self.length)

    def split(self, states: Tensor) -> Tensor:
        """Its part of all texts' states, by text. Shape: (T, ...) -> (N, L, ...), a view."""
        parts: Tensor = states[self.tokens].unflatten(0, (self.texts, self.length))
        return parts

    def mean(self, hidden_TD: Tensor) -> Tensor:
        """Mean of the pooled states of each text. Shape: (T, D) -> (N, D), float32."""
        stop = self.length - self.after
        return self.split(hidden_TD)[:, max(stop - self.pooled, 0) : stop].float().mean(1)


def tokens_of_a_pass(device: torch.device) -> int:
    """Tokens of one forward pass on a device."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


def pooled_states(model: LanguageModule, rows: Sequence[TextRow], *, device: torch.device) -> Tensor:
    """Mean states of the texts' pooled tokens, read in bounded passes. Shape: (len(rows), D), float32, any scale."""
    pooled = torch.empty(len(rows), model.config.hidden_size, device=device)
    with torch.inference_mode():
        for chosen in passes([len(row.ids) for row in rows], tokens=tokens_of_a_pass(device)):
            pooled[torch.tensor(chosen, device=device)] = _one_pass(model, [rows[i] for i in chosen], device)
    return pooled


def _one_pass(model: LanguageModule, rows: Sequence[TextRow], device: torch.device) -> Tensor:
    """Mean states of rows in which equal lengths stand together. Shape: (len(rows), D), float32."""
    runs = list(runs_of(rows))
    ids_T = torch.tensor([token for row in rows for token in row.ids], device=device)
    states = _bert_states if isinstance(model, BertEncoder) else _llama_states
    hidden_TD = states(model, ids_T, runs)  # type: ignore[arg-type]
    return torch.cat([run.mean(hidden_TD) for run in runs])


def form(row: TextRow) -> tuple[int, int, int]:
    """What rows of one run have in common: their tokens, those that are pooled, those after them."""
    return len(row.ids), row.pooled, row.after


def runs_of(rows: Sequence[TextRow]) -> Iterator[Run]:
    """The runs of rows, in their order."""
    first = 0
    for (length, pooled, after), texts in groupby(rows, key=form):
        count = len(list(texts))
        yield Run(first, count, length, pooled, after)
        first += count * length


def positions_of(runs: Sequence[Run], *, device: torch.device) -> Tensor:
    """Place of each token in its text. Shape: (T,), int64."""
    return torch.cat([torch.arange(run.length, device=device).repeat(run.texts) for run in runs])


def _mixed(query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run], *, grouped: bool) -> Tensor:
    """Attention within each text. Shapes: (T, heads, E) each -> (T, heads * E)."""
    mixed = torch.empty_like(query)
    for run in runs:
        asked, keys, values = (run.split(states).transpose(1, 2) for states in (query, key, value))
        seen = F.scaled_dot_product_attention(asked, keys, values, enable_gqa=grouped)
        run.split(mixed).copy_(seen.transpose(1, 2))
    return mixed.flatten(1)


def _bert_states(model: BertEncoder, ids_T: Tensor, runs: Sequence[Run]) -> Tensor:
    """Contextual states. Shape: (T, D), dtype of the weights."""
    hidden_TD: Tensor = model.embeddings(ids_T, positions_of(runs, device=ids_T.device))
    for module in model.layers:
        block = cast("BertBlock", module)
        mixed = _mixed(*block.attention.heads(hidden_TD), runs, grouped=False)
        hidden_TD = block.feed_forward(block.attention.output(mixed, hidden_TD))
    return hidden_TD


def _llama_states(model: BidirectionalLlama, ids_T: Tensor, runs: Sequence[Run]) -> Tensor:
    """Contextual states after the final norm. Shape: (T, D), dtype of the weights."""
    hidden_TD: Tensor = model.embed_tokens(ids_T)
    cos_LE, sin_LE = model.rotary(max(run.length for run in runs), hidden_TD)
    positions_T = positions_of(runs, device=ids_T.device)
    # One half of each table, as the halves are equal; between them an axis for the heads.
    half = cos_LE.shape[-1] // 2
    rotary = cos_LE[positions_T, None, :half], sin_LE[positions_T, None, :half]
    for block in model.layers:
        _block(cast("LlamaBlock", block), hidden_TD, rotary, runs)
    states: Tensor = model.norm(hidden_TD)
    return states


def _block(block: LlamaBlock, hidden_TD: Tensor, rotary: tuple[Tensor, Tensor], runs: Sequence[Run]) -> None:
    """Apply a block in place."""
    hidden_TD.add_(_attended(block.self_attn, block.input_layernorm(hidden_TD), rotary, runs))
    hidden_TD.add_(_transformed(block.mlp, block.post_attention_layernorm(hidden_TD)))


def _attended(
    attention: Attention, normed_TD: Tensor, rotary: tuple[Tensor, Tensor], runs: Sequence[Run]
) -> Tensor:
    query, key, value = attention.heads(normed_TD)
    _turn(query, *rotary)
    _turn(key, *rotary)
    output: Tensor = attention.o_proj(_mixed(query, key, value, runs, grouped=attention.grouped))
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
