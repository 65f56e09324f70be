"""Texts through a language model, and through the adapter that maps its states to the space shared with images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, final

import torch
from torch import Tensor

from llm2clip.encoders.catalog.entries import Choice
from llm2clip.encoders.core.base import Parity
from llm2clip.encoders.core.dual_encoder import TextTower, to_array
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import identity_settings, settings_sha256
from llm2clip.encoders.text.caption_tokenizer import TextReader
from llm2clip.encoders.text.packed import pooled_states
from llm2clip.encoders.weights.memory_fit import check_choice, pick_choice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders.layers.llama import TextAdapter
    from llm2clip.encoders.text.llm_source import LanguageSource


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
        plan, name = self.source.plan, self.source.name
        if self._asked == "auto":
            return pick_choice(plan, name=name, stored=plan.stored, device=self._place)
        check_choice(plan, self._asked, name=name, device=self._place)
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
        rules = identity_settings(self.source.text_rules(self.parity))
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
