"""Texts through a language model, and through the adapter that maps its states to the space shared with images.

Texts of different lengths go through the model without padding: their tokens stand in one row after the other.
Everything but attention treats tokens one by one, so it is done for all texts at once; attention is done for the texts
of one length at a time, and needs no mask. Results are those of ``BidirectionalLlama.forward``, to which a test holds
them. For inference: no gradient passes, and large intermediate results are overwritten.

Shape suffixes: T tokens of all texts, D hidden width, X width of one projection, N texts of one length, L their length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Literal, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor

from llm2clip.encoders.catalog.entries import Choice, LlamaShape
from llm2clip.encoders.core.base import Parity
from llm2clip.encoders.core.dual_encoder import TextTower, to_array
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import settings_sha256
from llm2clip.encoders.text.caption_tokenizer import TextReader
from llm2clip.encoders.weights.memory_fit import check_choice, pick_choice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders.layers.llama import (
        Attention,
        BidirectionalLlama,
        FeedForward,
        LlamaBlock,
        TextAdapter,
    )
    from llm2clip.encoders.text.caption_tokenizer import TextRow
    from llm2clip.encoders.text.llm_source import LanguageSource


_CPU_TOKENS = 1024
"""Tokens of one pass on a CPU: enough for matrix products at full speed, few enough for its caches."""
_GPU_TOKENS = 16_384
"""Tokens of one pass on a GPU: the hidden layer of an 8B model takes half a gigabyte then."""


@final
class LlmTextTower(TextTower):
    """A language model with its tokenizer, and an adapter behind it unless its own states are wanted.

    Tokenizer, adapter and language model are each read when they are first needed.
    """

    def __init__(
        self,
        source: LanguageSource,
        *,
        choice: Choice | Literal["auto"],
        device: torch.device,
        parity: Parity = "native",
        load_adapter: Callable[[], TextAdapter] | None = None,
        half: bool = False,
    ) -> None:
        """``load_adapter`` is ``None`` for the states themselves; ``half`` rounds them to float16 first."""
        super().__init__(lambda: source.plan.load(self._choice, device=device), device=device, dtype=choice)
        self.source = source
        self.parity: Parity = parity
        self.half = half
        self._asked = choice
        self._place = device
        self._load_adapter = load_adapter

    @property
    def dtype(self) -> Choice:
        """Precision in which the model is loaded; ``"auto"`` resolves to the most precise that fits into memory."""
        return self._choice

    @cached_property
    def _choice(self) -> Choice:
        config, name = self.source.plan.config, self.source.name
        shape = LlamaShape(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
        )
        if self._asked == "auto":
            return pick_choice(shape, name=name, stored=self.source.plan.stored, device=self._place)
        check_choice(shape, self._asked, name=name, device=self._place)
        return self._asked

    @property
    def found(self) -> tuple[str, ...]:
        """What was inferred from the files, in words; downloads and opens them."""
        return self.source.found

    @cached_property
    def reader(self) -> TextReader:
        """The tokenizer with its rules; read on first use."""
        return self.source.reader(self.parity)

    @cached_property
    def adapter(self) -> TextAdapter | None:
        """The adapter; loaded on first use."""
        return self._load_adapter() if self._load_adapter is not None else None

    @property
    def settings_sha256(self) -> str:
        """SHA-256 of which language model it is and of how texts are read; nothing is fetched for a published one."""
        rules = asdict(self.source.text_rules(self.parity))
        return settings_sha256({"language_model": self.source.sha256, "text_rules": rules}, files=[])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""
        return list(self.reader.count_tokens(texts))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""
        # The adapter first: it is small, and refuses a language model of another width.
        if self.adapter is None:
            return to_array(self.features(texts))
        return to_array(self.project(self.features(texts)))

    def features(self, texts: Sequence[str]) -> Tensor:
        """Mean states of the texts' own tokens. Shape: (len(texts), width), float32, any scale.

        Any number of texts: they are sorted by length and read in passes of a bounded number of tokens, without
        padding. Only ``parity="upstream"`` reads them in one padded batch, as results depend on it there.
        """
        if self.parity == "upstream":
            return self.pooled(*(part.to(self.device) for part in self.reader.batch(texts)))
        return pooled_states(self.module(), self.reader.rows(texts), device=self._place)

    def pooled(self, ids_BL: Tensor, attention_BL: Tensor, pooled_BL: Tensor) -> Tensor:
        """Mean states of what ``TextReader.batch`` gave. Shape: (B, width), float32, any scale."""
        model = self.module()
        with torch.inference_mode():
            return self.reader.pool(model(ids_BL, attention_BL).float(), pooled_BL)

    def project(self, features: Tensor) -> Tensor:
        """Stored language model states in the shared space. Shape: (B, width) -> (B, dim), not normalised."""
        features = torch.as_tensor(features)
        if self.adapter is None:
            return features
        weight = next(self.adapter.parameters())
        if features.shape[-1] != weight.shape[-1]:
            raise ModelError(
                f"the adapter reads states of width {weight.shape[-1]}, got {features.shape[-1]}; "
                "were they made by another language model?"
            )
        if self.half:
            features = features.half()
        with torch.inference_mode():
            projected: Tensor = self.adapter(features.to(weight.device, weight.dtype))
        return projected


@dataclass(frozen=True)
class _Run:
    """Consecutive texts of one length."""

    first: int
    """Index of its first token."""
    texts: int
    """Number of texts."""
    length: int
    """Tokens of each."""
    pooled: int
    """Pooled tokens of each, at its end."""

    @property
    def tokens(self) -> slice:
        """Slice of its tokens."""
        return slice(self.first, self.first + self.texts * self.length)


def tokens_of_a_pass(device: torch.device) -> int:
    """Tokens of one forward pass on a device."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


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


def pooled_states(model: BidirectionalLlama, rows: Sequence[TextRow], *, device: torch.device) -> Tensor:
    """Mean states of the texts' own tokens, read in bounded passes. Shape: (len(rows), D), float32, any scale."""
    pooled = torch.empty(len(rows), model.config.hidden_size, device=device)
    with torch.inference_mode():
        for chosen in passes([len(row.ids) for row in rows], tokens=tokens_of_a_pass(device)):
            pooled[torch.tensor(chosen, device=device)] = _one_pass(model, [rows[i] for i in chosen], device)
    return pooled


def _one_pass(model: BidirectionalLlama, rows: Sequence[TextRow], device: torch.device) -> Tensor:
    """Mean states of rows in which equal lengths stand together. Shape: (len(rows), D), float32."""
    runs = list(_runs(rows))
    hidden_TD = _states(
        model, torch.tensor([token for row in rows for token in row.ids], device=device), runs
    )
    means = [
        hidden_TD[run.tokens].unflatten(0, (run.texts, run.length))[:, -run.pooled :].float().mean(1)
        for run in runs
    ]
    return torch.cat(means)


def _runs(rows: Sequence[TextRow]) -> Iterator[_Run]:
    first = 0
    for (length, pooled), texts in groupby(rows, key=lambda row: (len(row.ids), row.pooled)):
        count = len(list(texts))
        yield _Run(first, count, length, pooled)
        first += count * length


def _states(model: BidirectionalLlama, ids_T: Tensor, runs: Sequence[_Run]) -> Tensor:
    """Contextual states after the final norm. Shape: (T, D), dtype of the weights."""
    hidden_TD: Tensor = model.embed_tokens(ids_T)
    cos_LE, sin_LE = model.rotary(max(run.length for run in runs), hidden_TD)
    positions_T = torch.cat([torch.arange(run.length, device=ids_T.device).repeat(run.texts) for run in runs])
    # One half of each table, as the halves are equal; between them an axis for the heads.
    half = cos_LE.shape[-1] // 2
    rotary = cos_LE[positions_T, None, :half], sin_LE[positions_T, None, :half]
    for block in model.layers:
        _block(cast("LlamaBlock", block), hidden_TD, rotary, runs)
    states: Tensor = model.norm(hidden_TD)
    return states


def _block(block: LlamaBlock, hidden_TD: Tensor, rotary: tuple[Tensor, Tensor], runs: Sequence[_Run]) -> None:
    """Apply a block in place."""
    hidden_TD.add_(_attended(block.self_attn, block.input_layernorm(hidden_TD), rotary, runs))
    hidden_TD.add_(_transformed(block.mlp, block.post_attention_layernorm(hidden_TD)))


def _attended(
    attention: Attention, normed_TD: Tensor, rotary: tuple[Tensor, Tensor], runs: Sequence[_Run]
) -> Tensor:
    width = attention.head_dim
    query, key, value = (
        projection(normed_TD).unflatten(-1, (-1, width))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    _turn(query, *rotary)
    _turn(key, *rotary)
    mixed = torch.empty_like(query)
    for run in runs:
        asked, keys, values = (
            states[run.tokens].unflatten(0, (run.texts, run.length)).transpose(1, 2)
            for states in (query, key, value)
        )
        seen = F.scaled_dot_product_attention(asked, keys, values, enable_gqa=attention.grouped)
        mixed[run.tokens].unflatten(0, (run.texts, run.length)).copy_(seen.transpose(1, 2))
    output: Tensor = attention.o_proj(mixed.flatten(1))
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
