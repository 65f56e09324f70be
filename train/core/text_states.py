"""Turn texts into token rows and pooled states while training: padded in length-sorted chunks, order restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llm2clip.encoders.layers.llama import BidirectionalLlama, mean_pool
from llm2clip.train.core.device import tensor_of
from llm2clip.train.core.tokenizer import BOS, EOT, PAD

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class SentenceStates:
    """The language model's states of texts, their sentences and their tokens."""

    texts: Tensor
    """Shape: (texts, D), pooled."""
    sentences: Tensor
    """Shape: (all sentences in order, D), sums over the sentence's tokens; zero for one cut off by the limit."""
    tokens: Tensor
    """Shape: (all tokens, D), before the last block."""
    owners: Tensor
    """Shape: (all tokens,), int64: the sentence of each."""


class TextEncoder:
    """nano's text rules for training: begin token, text, end token; all but the begin token is pooled."""

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, chunk_tokens: int = 4096) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.chunk_tokens = chunk_tokens
        known = tokenizer.get_vocab()
        self.bos, self.eot, self.pad = known[BOS], known[EOT], known[PAD]

    @classmethod
    def from_file(cls, path: Path, *, max_tokens: int, dropout: float | None = None) -> TextEncoder:
        """Read ``tokenizer.json``; with ``dropout`` merges are left out at random (BPE dropout)."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.model.dropout = dropout
        return cls(tokenizer, max_tokens=max_tokens)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token rows with begin and end token, cut to ``max_tokens`` with the end token kept."""
        return self._encode(texts)[0]

    def _encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Token rows, and where in its text each token begins (end token: behind the last character)."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        kept = self.max_tokens - 2
        rows = [[self.bos, *item.ids[:kept], self.eot] for item in encoded]
        begins = [
            [0, *(begin for begin, _ in item.offsets[:kept]), len(text)]
            for item, text in zip(encoded, texts, strict=True)
        ]
        return rows, begins

    def batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Pad rows on the right. Shapes: (B, L) int64 ids and (B, L) int64 attention mask."""
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self.pad, dtype=np.int64)
        ids[mask] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        return tensor_of(ids), tensor_of(mask.astype(np.int64))

    def pool(self, model: BidirectionalLlama, texts: Sequence[str]) -> Tensor:
        """Pooled states of texts. Shape: (len(texts), D), with gradient where it is enabled."""
        rows = self.tokenize(texts)
        pooled = []
        order, chunks = self._chunks(rows)
        for chosen in chunks:
            ids, mask = self.batch([rows[i] for i in chosen])
            pooled.append(mean_pool(model(ids, mask), _without_begin(mask)))
        return torch.cat(pooled)[_inverse(order)]

    def read_sentences(self, model: BidirectionalLlama, texts: Sequence[Sequence[str]]) -> SentenceStates:
        """Pooled states of whole texts, and of each of their sentences in context.

        ``texts`` has the sentences of each text, whose concatenation is the text.
        """
        rows, begins = self._encode(["".join(text) for text in texts])
        ends = [np.cumsum([len(sentence) for sentence in text]) for text in texts]
        firsts = np.cumsum([0, *(len(text) for text in texts)])
        order, chunks = self._chunks(rows)
        whole, parts, middle, owners = [], [], [], []
        for chosen in chunks:
            ids, mask = self.batch([rows[i] for i in chosen])
            states: list[Tensor] = []
            hidden = model(ids, mask, hidden_states=states)
            inner = _without_begin(mask)
            whole.append(mean_pool(hidden, inner))
            parts.append(hidden[inner.bool()])
            middle.append(states[-2][inner.bool()])
            for i in chosen:
                sentence = np.searchsorted(ends[i], begins[i][1:], "right")
                owners.append(firsts[i] + np.minimum(sentence, len(ends[i]) - 1))
        owner = tensor_of(np.concatenate(owners))
        states_TD = torch.cat(parts)
        sums = torch.zeros(int(firsts[-1]), states_TD.shape[1]).index_add(0, owner, states_TD)
        return SentenceStates(torch.cat(whole)[_inverse(order)], sums, torch.cat(middle), owner)

    def _chunks(self, rows: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
        """Rows by length, and the same in groups of at most ``chunk_tokens`` padded tokens."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        chunks, start = [], 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end - start + 1) * len(rows[order[end]]) <= self.chunk_tokens:
                end += 1
            chunks.append(order[start:end])
            start = end
        return order, chunks


def _without_begin(mask: Tensor) -> Tensor:
    inner = mask.clone()
    inner[:, 0] = 0
    return inner


def _inverse(order: Sequence[int]) -> Tensor:
    back = np.empty(len(order), dtype=np.int64)
    back[list(order)] = np.arange(len(order))
    return tensor_of(back)
