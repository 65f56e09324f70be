"""BERT and XLM-RoBERTa without a head: the encoders of multilingual-e5, BGE, MiniLM and their kin.

Parameter names, shapes and operations are those of transformers' ``BertModel`` and ``XLMRobertaModel``, which differ
only in where positions begin, so their checkpoints load unchanged; a test holds them equal. ``layers.llama`` says why
it is not transformers' own.

Shape suffixes: B texts, L token positions, D hidden width, H heads, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.encoders.layers.configs import BertConfig


class BertEmbeddings(nn.Module):
    """Token, position and segment embedding, added and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.first_position = config.first_position
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Shapes: (..., L), int64, and places in their rows from 0 on, (..., L) or (L,) -> (..., L, D)."""
        hidden = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        output: Tensor = self.LayerNorm(hidden + self.position_embeddings(positions + self.first_position))
        return output


class AddNorm(nn.Module):
    """LayerNorm(residual + Linear(x))."""

    def __init__(self, inputs: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, states: Tensor, residual: Tensor) -> Tensor:
        """Shapes: (..., inputs), (..., width) -> (..., width)."""
        output: Tensor = self.LayerNorm(self.dense(states) + residual)
        return output


class BertAttention(nn.Module):
    """Self-attention, added to its input and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        width = config.hidden_size
        self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = AddNorm(width, width, config.layer_norm_eps)

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values. Shape: (..., D) -> (..., H, E) each."""
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.head_dim)) for projection in self.self.values()
        )
        return query, key, value

    def forward(self, hidden_BLD: Tensor, mask_BHLL: Tensor | None) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D)."""
        query, key, value = (part.transpose(1, 2) for part in self.heads(hidden_BLD))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_BHLL)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2), hidden_BLD)
        return output


class BertBlock(nn.Module):
    """One post-norm block: attention, then a GELU feed-forward layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = AddNorm(config.intermediate_size, config.hidden_size, config.layer_norm_eps)

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """Shape: (..., D) -> (..., D), added to the input and normalised."""
        output: Tensor = self.output(F.gelu(self.intermediate["dense"](hidden)), hidden)
        return output

    def forward(self, hidden_BLD: Tensor, mask_BHLL: Tensor | None) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D)."""
        return self.feed_forward(self.attention(hidden_BLD, mask_BHLL))


class BertEncoder(nn.Module):
    """Token ids to contextual states, every token seeing every other."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        blocks = nn.ModuleList(BertBlock(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": blocks})

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks, by the name they have in ``BidirectionalLlama``."""
        blocks = self.encoder["layer"]
        assert isinstance(blocks, nn.ModuleList), "they were made so"
        return blocks

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """Contextual states. Shapes: (B, L), int64, and (B, L) -> (B, L, D).

        Positions are counted from the row's start, so padding belongs on the right.
        """
        length = input_ids_BL.shape[1]
        hidden: Tensor = self.embeddings(input_ids_BL, torch.arange(length, device=input_ids_BL.device))
        mask = None
        if attention_mask_BL is not None and not bool((attention_mask_BL != 0).all()):
            mask = (attention_mask_BL != 0)[:, None, None, :].expand(-1, 1, length, -1)
            # A padded query must see something, or its softmax is 0/0; its own state is never read.
            mask = mask | torch.eye(length, dtype=torch.bool, device=mask.device)
        for block in self.layers:
            hidden = block(hidden, mask)
        return hidden
