"""Forward passes without padding that gradients go through: the training side of ``encoders.text.packed``.

Tokens of all texts stand in one row; everything but attention treats them one by one, and attention is done for the
texts of one length at a time, without a mask. A test holds the results to the padded forward pass of the model.

Shape suffixes: T tokens of all texts, D hidden width, H heads, E head width, N texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.text.packed import LanguageModule, Run, form, positions_of, runs_of

if TYPE_CHECKING:
    from llm2clip.encoders.layers.bert import BertBlock
    from llm2clip.encoders.layers.llama import Attention, LlamaBlock
    from llm2clip.encoders.text.caption_tokenizer import TextRow


class PackedText(nn.Module):
    """The forward pass of a text model over the tokens of many texts; its parameters are those of the model.

    Embedding, blocks and norm are reached through ``forward`` of modules, as ``fully_shard`` needs it.
    """

    def __init__(self, model: LanguageModule, *, checkpointing: bool) -> None:
        """Refer to the parts of ``model``; with ``checkpointing`` blocks are recomputed in the backward pass."""
        super().__init__()
        bert = isinstance(model, BertEncoder)
        self.embed = model.embeddings if isinstance(model, BertEncoder) else model.embed_tokens
        block = _bert_block if bert else _llama_block
        self.blocks = nn.ModuleList(
            _PackedBlock(part, block, checkpointing=checkpointing) for part in model.layers
        )
        self.norm = None if isinstance(model, BertEncoder) else model.norm
        self._rotary = None if isinstance(model, BertEncoder) else model.rotary

    def forward(self, rows: Sequence[TextRow], device: torch.device) -> Tensor:
        """States of all tokens of rows in which equal lengths stand together. Shape: (T, D)."""
        runs = list(runs_of(rows))
        ids_T = torch.tensor([token for row in rows for token in row.ids], device=device)
        positions_T = positions_of(runs, device=device)
        if self._rotary is None:
            hidden_TD: Tensor = self.embed(ids_T, positions_T)
            shared: tuple[object, ...] = (runs,)
        else:
            hidden_TD = self.embed(ids_T)
            cos_LE, sin_LE = self._rotary(max(run.length for run in runs), hidden_TD)
            half = cos_LE.shape[-1] // 2
            shared = (runs, cos_LE[positions_T, None, :half], sin_LE[positions_T, None, :half])
        for block in self.blocks:
            hidden_TD = block(hidden_TD, *shared)
        return hidden_TD if self.norm is None else self.norm(hidden_TD)

    def pooled(self, rows: Sequence[TextRow], device: torch.device) -> Tensor:
        """Mean states of the texts' pooled tokens, in the order given. Shape: (len(rows), D), float32, any scale."""
        order = sorted(range(len(rows)), key=lambda number: form(rows[number]))
        arranged = [rows[number] for number in order]
        hidden_TD = self(arranged, device)
        means = torch.cat([run.mean(hidden_TD) for run in runs_of(arranged)])
        return means[torch.tensor(order).argsort().to(device)]


class _PackedBlock(nn.Module):
    def __init__(self, block: nn.Module, compute: Callable[..., Tensor], *, checkpointing: bool) -> None:
        super().__init__()
        self.block, self._compute, self._checkpointing = block, compute, checkpointing

    def forward(self, hidden_TD: Tensor, *shared: object) -> Tensor:
        """Shape: (T, D) -> (T, D)."""
        if self._checkpointing and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(
                self._compute, self.block, hidden_TD, *shared, use_reentrant=False
            )
            return recomputed
        return self._compute(self.block, hidden_TD, *shared)


def _bert_block(block: BertBlock, hidden_TD: Tensor, runs: Sequence[Run]) -> Tensor:
    mixed_THE = _attend(*block.attention.heads(hidden_TD), runs, grouped=False)
    return block.feed_forward(block.attention.output(mixed_THE.flatten(1), hidden_TD))


def _llama_block(
    block: LlamaBlock, hidden_TD: Tensor, runs: Sequence[Run], cos_T1E: Tensor, sin_T1E: Tensor
) -> Tensor:
    normed_TD = block.input_layernorm(hidden_TD)
    hidden_TD = hidden_TD + _attended(block.self_attn, normed_TD, (cos_T1E, sin_T1E), runs)
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
