"""Forward passes without padding that gradients go through: the training side of ``encoders.text.packed``.

Tokens of all texts stand in one row; everything but attention treats them one by one, and attention is done for the
texts of one length at a time, without a mask. A test holds the results to the padded forward pass of the model.

Shape suffixes: T tokens of all texts, D hidden width, H heads, E head width, N texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.text.packed import LanguageModule, Run, form, positions_of, runs_of

if TYPE_CHECKING:
    from llm2clip.encoders.layers.bert import BertBlock
    from llm2clip.encoders.layers.llama import Attention, BidirectionalLlama, LlamaBlock
    from llm2clip.encoders.text.caption_tokenizer import TextRow


def pooled_states(
    model: LanguageModule, rows: Sequence[TextRow], *, device: torch.device, checkpointing: bool = False
) -> Tensor:
    """Mean states of the texts' pooled tokens, in the order given. Shape: (len(rows), D), float32, any scale.

    Args:
        model: The text model, whose linear layers may be wrapped (LoRA).
        rows: Tokens of each text.
        device: Where the model is.
        checkpointing: Recompute blocks in the backward pass.
    """
    order = sorted(range(len(rows)), key=lambda number: form(rows[number]))
    arranged = [rows[number] for number in order]
    hidden_TD = token_states(model, arranged, device=device, checkpointing=checkpointing)
    means = torch.cat([run.mean(hidden_TD) for run in runs_of(arranged)])
    return means[torch.tensor(order).argsort().to(device)]


def token_states(
    model: LanguageModule, rows: Sequence[TextRow], *, device: torch.device, checkpointing: bool = False
) -> Tensor:
    """States of all tokens of rows in which equal lengths stand together. Shape: (T, D)."""
    runs = list(runs_of(rows))
    ids_T = torch.tensor([token for row in rows for token in row.ids], device=device)
    if isinstance(model, BertEncoder):
        hidden_TD, blocks = _bert(model, ids_T, runs)
        return _through(blocks, hidden_TD, checkpointing=checkpointing)
    hidden_TD, blocks = _llama(model, ids_T, runs)
    states: Tensor = model.norm(_through(blocks, hidden_TD, checkpointing=checkpointing))
    return states


def _through(
    blocks: Sequence[Callable[[Tensor], Tensor]], hidden_TD: Tensor, *, checkpointing: bool
) -> Tensor:
    for block in blocks:
        hidden_TD = checkpoint(block, hidden_TD, use_reentrant=False) if checkpointing else block(hidden_TD)
    return hidden_TD


def _bert(
    model: BertEncoder, ids_T: Tensor, runs: Sequence[Run]
) -> tuple[Tensor, list[Callable[[Tensor], Tensor]]]:
    hidden_TD: Tensor = model.embeddings(ids_T, positions_of(runs, device=ids_T.device))
    return hidden_TD, [partial(_bert_block, cast("BertBlock", block), runs) for block in model.layers]


def _bert_block(block: BertBlock, runs: Sequence[Run], hidden_TD: Tensor) -> Tensor:
    mixed_THE = _attend(*block.attention.heads(hidden_TD), runs, grouped=False)
    return block.feed_forward(block.attention.output(mixed_THE.flatten(1), hidden_TD))


def _llama(
    model: BidirectionalLlama, ids_T: Tensor, runs: Sequence[Run]
) -> tuple[Tensor, list[Callable[[Tensor], Tensor]]]:
    hidden_TD: Tensor = model.embed_tokens(ids_T)
    cos_LE, sin_LE = model.rotary(max(run.length for run in runs), hidden_TD)
    half = cos_LE.shape[-1] // 2
    positions_T = positions_of(runs, device=ids_T.device)
    rotary = cos_LE[positions_T, None, :half], sin_LE[positions_T, None, :half]
    return hidden_TD, [
        partial(_llama_block, cast("LlamaBlock", block), rotary, runs) for block in model.layers
    ]


def _llama_block(
    block: LlamaBlock, rotary: tuple[Tensor, Tensor], runs: Sequence[Run], hidden_TD: Tensor
) -> Tensor:
    hidden_TD = hidden_TD + _attended(block.self_attn, block.input_layernorm(hidden_TD), rotary, runs)
    transformed: Tensor = block.mlp(block.post_attention_layernorm(hidden_TD))
    return hidden_TD + transformed


def _attended(
    attention: Attention, normed_TD: Tensor, rotary: tuple[Tensor, Tensor], runs: Sequence[Run]
) -> Tensor:
    query, key, value = attention.heads(normed_TD)
    mixed_THE = _attend(
        _turned(query, *rotary), _turned(key, *rotary), value, runs, grouped=attention.grouped
    )
    output: Tensor = attention.o_proj(mixed_THE.flatten(1))
    return output


def _turned(states_THE: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> Tensor:
    """Rotary embedding."""
    cos_T1E, sin_T1E = cos_T1E.to(states_THE.dtype), sin_T1E.to(states_THE.dtype)
    first, second = states_THE.chunk(2, dim=-1)
    return torch.cat((first * cos_T1E - second * sin_T1E, second * cos_T1E + first * sin_T1E), dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run], *, grouped: bool) -> Tensor:
    """Attention within each text. Shape: (T, H, E) each -> (T, H, E)."""
    mixed = []
    for run in runs:
        asked, keys, values = (run.split(states).transpose(1, 2) for states in (query, key, value))
        seen = F.scaled_dot_product_attention(asked, keys, values, enable_gqa=grouped)
        mixed.append(seen.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)
