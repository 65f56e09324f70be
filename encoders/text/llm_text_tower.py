"""Texts through a language model, and through the adapter that ties it to images.

Each of the two is loaded when it is first needed; the tokenizer, which counts tokens, before both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast, final

import torch
from torch import Tensor, nn

from llm2clip.encoders.catalog.entries import Choice, LlamaShape
from llm2clip.encoders.core.base import Parity
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.fingerprint import settings_sha256
from llm2clip.encoders.text.caption_tokenizer import TextReader
from llm2clip.encoders.text.dual_encoder import AbstractTextSide, LazyModule, to_array
from llm2clip.encoders.text.varlen_forward import pooled_states
from llm2clip.encoders.weights.memory_fit import check_choice, pick_choice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders.layers.llama import BidirectionalLlama
    from llm2clip.encoders.layers.text_adapter import TextAdapter
    from llm2clip.encoders.text.llm_source import LanguageSource


@final
class LanguageSide:
    """A language model and its tokenizer."""

    def __init__(
        self,
        source: LanguageSource,
        *,
        choice: Choice | Literal["auto"],
        device: torch.device,
        parity: Parity = "native",
    ) -> None:
        """Put it together; nothing is fetched or loaded yet.

        Args:
            source: Which model.
            choice: How it is held; ``"auto"`` for what fits.
            device: Where it is.
            parity: How texts are read.
        """
        self.source = source
        self.device = device
        self.parity: Parity = parity
        self.asked = choice
        self.module = LazyModule(self._load)

    @cached_property
    def reader(self) -> TextReader:
        """The tokenizer with its rules, read now if need be."""
        return self.source.reader(self.parity)

    @property
    def settings_sha256(self) -> str:
        """SHA-256 of which language model it is and of how texts are read; nothing is fetched for a published one."""
        rules = asdict(self.source.text_rules(self.parity))
        return settings_sha256({"language_model": self.source.sha256, "text_rules": rules}, files=[])

    @cached_property
    def choice(self) -> Choice:
        """How the model is held: as asked for, else the most faithful way that fits into free memory now.

        Raises:
            ModelError: It does not fit.
        """
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
        if self.asked == "auto":
            return pick_choice(shape, name=name, stored=self.source.plan.stored, device=self.device)
        check_choice(shape, self.asked, name=name, device=self.device)
        return self.asked

    def features(self, texts: Sequence[str]) -> Tensor:
        """Mean states of the texts' own tokens. Shape: (len(texts), width), float32, any scale.

        Any number of texts: they are sorted by length and read in passes of a bounded number of tokens, without
        padding. Only ``parity="upstream"`` reads them in one padded batch, as results depend on it there.
        """
        if self.parity == "upstream":
            return self.pooled(*(part.to(self.device) for part in self.reader.batch(texts)))
        model = cast("BidirectionalLlama", self.module())
        return pooled_states(model, self.reader.rows(texts), device=self.device)

    def pooled(self, ids_BL: Tensor, attention_BL: Tensor, pooled_BL: Tensor) -> Tensor:
        """Mean states of what ``TextReader.batch`` gave. Shape: (B, width), float32, any scale."""
        model = self.module()
        with torch.inference_mode():
            return self.reader.pool(model(ids_BL, attention_BL).float(), pooled_BL)

    def _load(self) -> nn.Module:
        return self.source.plan.load(self.choice, device=self.device)


@final
class TextTower(AbstractTextSide):
    """A language model, and an adapter behind it unless its own states are wanted."""

    def __init__(
        self,
        language: LanguageSide,
        *,
        adapter: Callable[[], TextAdapter] | None,
        half: bool = False,
    ) -> None:
        """Put it together; nothing is loaded yet.

        Args:
            language: Reads the texts.
            adapter: Gives the module from its states to the shared space; ``None`` for the states themselves.
            half: Round the states to fp16 first, as the SigLIP2 release was trained (golden case e).
        """
        self.language = language
        self.adapter = LazyModule(adapter) if adapter is not None else None
        self.half = half

    @property
    def loaded(self) -> bool:
        """Whether the language model is in memory."""
        return self.language.module.loaded

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""
        return list(self.language.reader.count_tokens(texts))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""
        if self.adapter is not None:
            self.adapter()  # The small one first: it knows whether the large one is the right one.
        return to_array(self.project(self.language.features(texts)))

    def project(self, features_BD: Tensor) -> Tensor:
        """States of the language model, which may have been stored, in the shared space.

        Args:
            features_BD: Shape: (B, width), float, any scale.

        Returns:
            Shape: (B, dim), not normalised.

        Raises:
            ModelError: They are of another width.
        """
        if self.adapter is None:
            return features_BD
        adapter = self.adapter()
        weight = next(adapter.parameters())
        if features_BD.shape[-1] != weight.shape[-1]:
            raise ModelError(
                f"the adapter reads states of width {weight.shape[-1]}, got {features_BD.shape[-1]}; "
                "were they made by another language model?"
            )
        if self.half:
            features_BD = features_BD.half()
        with torch.inference_mode():
            projected: Tensor = adapter(features_BD.to(weight.device, weight.dtype))
        return projected
