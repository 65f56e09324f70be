"""Tokenisation of the baselines: cleaning, truncation and padding as each was trained, and their text tower."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, cast, final

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from llm2clip.encoders.core.dual_encoder import ReaderTower, to_array
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import refuse_outside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
"""Files of a tokenizer: the first; the second and third; or the fourth."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_QUOTES = str.maketrans({"“": '"', "”": '"'})


class Cleaning(StrEnum):
    """Cleaning of a text before tokenisation."""

    NONE = "none"
    LOWER = "lower"
    """Lower case (SigLIP 2, arXiv 2502.14786)."""
    CANONICAL = "canonical"
    """Lower case, no ASCII punctuation, single spaces (SigLIP)."""
    CHINESE = "chinese"
    """Lower case, straight quotation marks (Chinese-CLIP's evaluation)."""


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """Format of the texts of a text tower."""

    end: str
    """Token every text ends with."""
    pad: str
    """Padding token, on the right."""
    cleaning: Cleaning = Cleaning.NONE
    """Cleaning before tokenisation."""
    limit: int | None = None
    """Tokens that are read, special ones included; ``None`` for as many as the tower has positions."""
    bare: bool = False
    """Add only the end token, whatever the tokenizer file says."""
    fixed: bool = False
    """Pad every text to the limit, and attend to the padding (SigLIP)."""


def clean(text: str, cleaning: Cleaning) -> str:
    """A text as the tokenizer gets it."""
    if cleaning is Cleaning.NONE:
        return text
    text = text.lower()
    if cleaning is Cleaning.CHINESE:
        return text.translate(_QUOTES)
    if cleaning is Cleaning.CANONICAL:
        return re.sub(r"\s+", " ", text.translate(_NO_PUNCTUATION)).strip()
    return text


@final
class TokenReader:
    """Texts to token ids."""

    def __init__(self, tokenizer: Tokenizer, *, form: TextForm, limit: int) -> None:
        """Take over a tokenizer: its own truncation and padding are switched off."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.form = form
        self.limit = limit
        self._pad = _id(tokenizer, form.pad)
        self._special = tokenizer.num_special_tokens_to_add(False)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting, special ones included."""
        cleaned = [clean(text, self.form.cleaning) for text in texts]
        return [len(row.ids) for row in self.tokenizer.encode_batch(cleaned)]

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Token ids, and a mask where padding is not attended to. Shape: (len(texts), L), int64."""
        rows = []
        cleaned = [clean(text, self.form.cleaning) for text in texts]
        for row in self.tokenizer.encode_batch(cleaned, add_special_tokens=False):
            # Cut before the special tokens are added: the last one is what several towers read.
            row.truncate(max(0, self.limit - self._special))
            rows.append(self.tokenizer.post_process(row).ids)
        length = self.limit if self.form.fixed else max(map(len, rows))
        ids = torch.tensor([row + [self._pad] * (length - len(row)) for row in rows])
        if self.form.fixed:
            return ids, None
        return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


@final
class TokenTower(ReaderTower[TokenReader]):
    """Texts through a tokenizer and a module from ids (B, L) and a mask (B, L), or ``None``, to vectors (B, dim)."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""
        return self.reader.count(texts)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""
        ids, mask = self.reader.batch(texts)
        module = self.module()
        with torch.inference_mode():
            return to_array(module(ids.to(self.device), None if mask is None else mask.to(self.device)))


def load_tokenizer(folder: Path, *, form: TextForm, vocabulary: int) -> Tokenizer:
    """The tokenizer in a folder."""
    tokenizer = _read(folder)
    size = tokenizer.get_vocab_size()
    if size > vocabulary:
        raise ModelError(
            f"the tokenizer in {folder} has {size} tokens, the model knows {vocabulary}; it is of another model"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token in (form.end, form.pad):
        if tokenizer.token_to_id(token) is None:
            raise ModelError(f"the tokenizer in {folder} has no token {token!r}; it is of another model")
    if form.bare:
        ends = [(form.end, _id(tokenizer, form.end))]
        tokenizer.post_processor = TemplateProcessing(single=f"$A {form.end}", special_tokens=ends)
    last = tokenizer.encode("a").ids[-1:]
    if last != [_id(tokenizer, form.end)]:
        raise ModelError(
            f"the tokenizer in {folder} does not end a text with {form.end!r}; it is of another model"
        )
    return tokenizer


def tokenizer_files(folder: Path) -> list[Path]:
    """Those of a folder's files that its tokenizer is made from; none if there is no tokenizer."""
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",)):
        files = [folder / name for name in names]
        if all(file.is_file() for file in files):
            return files
    return []


def _read(folder: Path) -> Tokenizer:
    files = tokenizer_files(folder)
    for file in files:
        refuse_outside(file)
    present = {file.name for file in files}
    try:
        if "tokenizer.json" in present:
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        if "vocab.json" in present:
            from transformers import CLIPTokenizer

            return cast("Tokenizer", CLIPTokenizer.from_pretrained(str(folder)).backend_tokenizer)
        if "vocab.txt" in present:
            from transformers import BertTokenizer

            return BertTokenizer(vocab=str(folder / "vocab.txt")).backend_tokenizer
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelError(f"{folder} has no tokenizer that can be read: {error}") from error
    raise ModelError(
        f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt, or vocab.txt"
    )


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return int(number)
