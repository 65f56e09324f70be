"""Tokenisation of captions for a language model: wrapper, truncation and the positions that are pooled.

Two ways. ``native`` is ours: a caption's row and its result depend on that caption alone. ``upstream`` gives
what the reference code of LLM2CLIP (LLM2Vec 0.2.3) gives, mistakes included; golden case d holds it to that.

Shape suffixes: B texts, L token positions, D hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from llm2clip.encoders.core.base import Parity
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import NEWER, read_object, refuse_outside
from llm2clip.encoders.layers.configs import BertConfig, LlamaConfig
from llm2clip.encoders.weights.tensor_names import TOKENIZER_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

LLAMA3_HEADER = "<|start_header_id|>user<|end_header_id|>\n\n"
LLAMA3_FOOTER = "<|eot_id|>"

Pool = Literal["caption", "all", "first", "last"]
"""Which states of a text are averaged."""

_SEPARATOR = "!@#$%^&*()"


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """Text around a caption, and length limits."""

    header: str = ""
    """Before the caption, special tokens by name; attended to, never pooled."""
    footer: str = ""
    """After the caption, usually the end token; pooled."""
    max_tokens: int = 512
    """Longest row in tokens, begin token, header and footer included."""
    doc_max_length: int | None = None
    """Most tokens of the caption itself; ``None``: as many as the row has room for."""
    parity: Parity = "native"
    """Ours, or the reference implementation's behaviour."""
    prompt: str = field(default="", metadata=NEWER)
    """Plain text before the caption, tokenised together with it: ``"query: "`` of the E5 models."""
    pool: Pool = field(default="caption", metadata=NEWER)
    """States that are averaged: of the caption and what follows it (LLM2CLIP), of all tokens (E5), of the first token
    (BGE), or of the last (Qwen3-Embedding)."""

    def __post_init__(self) -> None:
        if self.pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {self.pool!r}")
        if self.max_tokens < 1 or (self.doc_max_length is not None and self.doc_max_length < 1):
            got = f"{self.max_tokens} and {self.doc_max_length}"
            raise ValueError(f"max_tokens and doc_max_length must be positive, got {got}")
        if self.parity not in ("native", "upstream"):
            raise ValueError(
                f"parity must be 'native' or 'upstream' (preprocessing 'native' or 'reference'), got {self.parity!r}"
            )
        if self.parity == "upstream" and (self.prompt or self.pool != "caption"):
            raise ValueError(
                "preprocessing='reference' repeats what LLM2CLIP's original does to texts, which knows no prompt and "
                "pools the caption only; use 'native'"
            )


@dataclass(frozen=True)
class TextRow:
    """The tokens of one text."""

    ids: list[int]
    """Token ids, without padding."""
    pooled: int
    """Number of pooled positions, which stand together."""
    after: int = 0
    """Number of positions after them."""


def passes(lengths: Sequence[int], *, tokens: int) -> Iterator[list[int]]:
    """Positions of texts, the short ones first, in groups of at most so many tokens (or of one text)."""
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


class TextReader:
    """Texts to token rows with masks, under one set of rules.

    ``native``: surrounding white space does not count. Header, caption and footer are tokenised apart, so a
    header should end where a token ends; a prompt is part of the caption. Names of special tokens inside a
    caption are plain text: ``<|eot_id|>`` in a caption ends nothing (names a tokenizer holds without declaring
    them special are still one token). Captions that are too long lose tokens at their end; header and footer
    stay. Rows are padded on the right.

    ``upstream``: surrounding white space is stripped behind the caption only, and only if there is a wrapper.
    Names of special tokens are special. Captions over ``doc_max_length`` are shortened word-wise, to nothing
    if they have no white space; over-long rows lose the footer. The pooled part is the length of the text
    tokenised alone, counted from the right, so it can begin in the header, and a caption with the separator
    ``!@#$%^&*()`` in it pools the wrong positions. Rows are padded on the left.
    """

    def __init__(self, tokenizer: Tokenizer, rules: TextRules, *, pad_id: int = 0) -> None:
        """Take over a tokenizer with the post-processor that adds the begin token; its other settings are replaced."""
        self.rules = rules
        self._tokenizer = tokenizer
        self._pad_id = pad_id
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        for name in re.findall(r"<\|[^|<>]*\|>", rules.header + rules.footer):
            if tokenizer.token_to_id(name) is None:
                raise ValueError(
                    f"the tokenizer has no token {name!r}: is it the tokenizer of another model?"
                )
        self._begin, self._end = _added_by_post_processor(tokenizer)
        self._header, self._footer = self._tokens([rules.header, rules.footer])
        self._upstream = rules.parity == "upstream"
        around = sum(map(len, (self._begin, self._header, self._footer, self._end)))
        if rules.max_tokens <= around:
            raise ValueError(
                f"max_tokens {rules.max_tokens} leaves no room for a caption: {around} tokens stand around it"
            )
        room = rules.max_tokens - around
        self._room = min(room, rules.doc_max_length or room)
        # From here on native texts are read, in which no special token is meant.
        tokenizer.encode_special_tokens = not self._upstream

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and mask of the pooled states of a batch. Shape of each: (B, L), int64."""
        import torch

        if not texts:
            raise ValueError("expected at least one text, got none")
        rows = self.rows(texts)
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self._pad_id)
        attention, embed = torch.zeros_like(ids), torch.zeros_like(ids)
        for number, row in enumerate(rows):
            stop = length if self._upstream else len(row.ids)
            start = stop - len(row.ids)
            ids[number, start:stop] = torch.tensor(row.ids, dtype=torch.int64)
            attention[number, start:stop] = 1
            last = stop - row.after
            embed[number, max(last - row.pooled, 0) : last] = 1
        return ids, attention, embed

    def rows(self, texts: Sequence[str]) -> list[TextRow]:
        """Tokenise texts, without padding."""
        return self._upstream_rows(texts) if self._upstream else self._native_rows(texts)

    def pool(self, hidden_BLD: Tensor, embed_mask_BL: Tensor) -> Tensor:
        """Mean of the selected states; of all in an ``upstream`` row without any. Shape: (B, L, D) -> (B, D)."""
        from llm2clip.encoders.layers.llama import mean_pool

        if self._upstream:
            embed_mask_BL = embed_mask_BL.masked_fill(embed_mask_BL.sum(dim=1, keepdim=True) == 0, 1)
        return mean_pool(hidden_BLD, embed_mask_BL)

    @property
    def capacity(self) -> int:
        """Most tokens, as ``count_tokens`` counts them, of a text that is read to its end."""
        return self._room + len(self._footer) + len(self._end)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each whole text and of what follows it; begin token and header not counted."""
        if self._upstream:
            return self._upstream_counts(texts)
        return [len(ids) + len(self._footer) + len(self._end) for ids in self._native_tokens(texts)]

    def prepared(self, text: str) -> str:
        """The string that ``upstream`` makes of a text, separator included, before it is tokenised."""
        return self._wrapped(_SEPARATOR + self._shortened(text))

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except TypeError as error:
            if wrong := [text for text in texts if not _is_unicode(text)]:
                raise ValueError(f"expected text in valid Unicode, got {wrong[0]!r}") from error
            raise
        return [item.ids for item in encoded]

    def _native_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokens([self.rules.prompt + text.strip() for text in texts])

    def _native_rows(self, texts: Sequence[str]) -> list[TextRow]:
        rows = []
        for text, ids in zip(texts, self._native_tokens(texts), strict=True):
            pooled = ids[: self._room] + self._footer + self._end
            if not pooled:
                raise ValueError(f"expected a text with something to read, got {text!r}")
            rows.append(self._row(self._begin + self._header + pooled, len(pooled)))
        return rows

    def _row(self, ids: list[int], caption: int) -> TextRow:
        if self.rules.pool == "first":
            return TextRow(ids, 1, after=len(ids) - 1)
        return TextRow(ids, {"caption": caption, "all": len(ids), "last": 1}[self.rules.pool])

    def _upstream_rows(self, texts: Sequence[str]) -> list[TextRow]:
        limit = self.rules.max_tokens
        room = limit - len(self._begin) - len(self._end)
        prepared = [self.prepared(text) for text in texts]
        whole = self._tokens([text.replace(_SEPARATOR, "") for text in prepared])
        counted = self._tokens([text.split(_SEPARATOR)[1] for text in prepared])
        return [
            TextRow(self._begin + ids[:room] + self._end, min(len(own), limit))
            for ids, own in zip(whole, counted, strict=True)
        ]

    def _upstream_counts(self, texts: Sequence[str]) -> list[int]:
        bodies = [self._wrapped(text).removeprefix(self.rules.header) for text in texts]
        return [len(ids) + len(self._end) for ids in self._tokens(bodies)]

    def _wrapped(self, text: str) -> str:
        rules = self.rules
        return f"{rules.header}{text.strip()}{rules.footer}" if rules.header or rules.footer else text

    def _shortened(self, text: str) -> str:
        """The first words of a text, as many as the reference keeps."""
        limit = self.rules.doc_max_length or self.rules.max_tokens
        while (count := min(len(self._tokens([text])[0]), self.rules.max_tokens)) > limit:
            words = text.split()
            # In this order of operations: the quotient is rounded before it is multiplied.
            text = " ".join(words[: int(len(words) * (limit / count))])
        return text


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _added_by_post_processor(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids the tokenizer puts before and behind a text."""
    encoded = tokenizer.encode("a", add_special_tokens=True)
    added = encoded.special_tokens_mask
    if 0 not in added:
        raise ValueError("the tokenizer reads 'a' as nothing: is it the tokenizer of this model?")
    first, last = added.index(0), len(added) - added[::-1].index(0)
    return encoded.ids[:first], encoded.ids[last:]


def open_reader(folder: Path, rules: TextRules, *, config: LlamaConfig | BertConfig, name: str) -> TextReader:
    """The tokenizer of a folder, under rules that its model must be able to follow."""
    tokenizer, known = read_tokenizer(folder), config.vocab_size
    if (size := tokenizer.get_vocab_size()) > known:
        raise ModelError(
            f"{folder / TOKENIZER_FILE} has {size} tokens, but {folder / 'config.json'} says vocab_size is {known}; "
            "they are not of the same model"
        )
    if isinstance(config, BertConfig) and rules.max_tokens > config.most_tokens:
        raise ModelError(
            f"{name} has positions for {config.most_tokens} tokens, but its text rules allow {rules.max_tokens}"
        )
    try:
        return TextReader(tokenizer, rules, pad_id=_pad_id(folder, tokenizer))
    except ValueError as error:
        raise ModelError(f"{folder / TOKENIZER_FILE} does not fit the rules of {name}: {error}") from error


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in ``tokenizer.json``, of any kind."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise ModelError(f"{folder} has no {TOKENIZER_FILE}; copy it from the model's repository")
    refuse_outside(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelError(f"{path} is not a tokenizer file: {error}") from error


def _pad_id(folder: Path, tokenizer: Tokenizer) -> int:
    """Id of the padding token in the tokenizer settings, else of the end token."""
    path = folder / "tokenizer_config.json"
    settings = read_object(path, folder=folder) if path.is_file() else {}
    for key in ("pad_token", "eos_token"):
        name = settings.get(key)
        name = name.get("content") if isinstance(name, dict) else name
        number = tokenizer.token_to_id(name) if isinstance(name, str) else None
        if number is not None:
            return number
    return 0
