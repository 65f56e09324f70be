"""Turn texts into token rows and pooled states while training: padded in length-sorted chunks, order restored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llm2clip.encoders.llama import BidirectionalLlama, mean_pool
from llm2clip.train.device import tensor_of
from llm2clip.train.tokenizer import BOS, EOT, PAD

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextEncoder:
    """nano's text rules, for training: begin token, the text, end token; everything but the begin token is pooled."""

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
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[self.bos, *item.ids[: self.max_tokens - 2], self.eot] for item in encoded]

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
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        pooled, start = [], 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end - start + 1) * len(rows[order[end]]) <= self.chunk_tokens:
                end += 1
            ids, mask = self.batch([rows[i] for i in order[start:end]])
            pool_mask = mask.clone()
            pool_mask[:, 0] = 0
            pooled.append(mean_pool(model(ids, mask), pool_mask))
            start = end
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        return torch.cat(pooled)[tensor_of(back)]
