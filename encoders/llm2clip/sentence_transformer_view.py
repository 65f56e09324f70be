"""The text tower of an encoder as a model of sentence-transformers, for what takes one: evaluation, clustering, mining.

The same tokens, masks and weights as ``encode_texts``, and the same unit vectors; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from llm2clip.encoders.core.dual_encoder import DualEncoder
from llm2clip.encoders.llm2clip.encoder_folder import FolderTextTower
from llm2clip.encoders.text.llm_text_tower import LlmTextTower

if TYPE_CHECKING:
    from llm2clip.encoders.core.base import Encoder


class CaptionModule(InputModule):
    """Texts to unit vectors, as the first and only module of a ``SentenceTransformer``."""

    def __init__(self, tower: LlmTextTower | FolderTextTower, *, name: str, dim: int) -> None:
        """Take the text tower of an encoder; it is loaded when the first text is read."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.tower = tower
        self.name = name
        self.dim = dim
        # What sentence-transformers asks for: it moves inputs to where a module's parameters are.
        self.place = torch.nn.Parameter(torch.zeros((), device=tower.device), requires_grad=False)

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text that are read."""
        return self.tower.reader.capacity

    def get_embedding_dimension(self) -> int:
        """Length of the vectors."""
        return self.dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: object) -> dict[str, Tensor]:
        """Token ids, attention mask and the positions that are averaged. Shape of each: (B, L), int64."""
        texts = [(prompt or "") + str(text) for text in inputs]
        ids, attention, pooled = self.tower.reader.batch(texts)
        return {"input_ids": ids, "attention_mask": attention, "embed_mask": pooled}

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        """Add ``sentence_embedding``, shape (B, dim), float32, unit rows."""
        states = self.tower.pooled(features["input_ids"], features["attention_mask"], features["embed_mask"])
        vectors = torch.as_tensor(self.tower.project(states)).float()  # an array where no torch is needed
        return features | {"sentence_embedding": torch.nn.functional.normalize(vectors, dim=-1)}

    def save(self, output_path: str, *_: object, **__: object) -> None:
        """Refuse: an encoder is saved with both its towers."""
        raise NotImplementedError(
            f"save the encoder {self.name!r} itself: save_encoder(encoder, {output_path!r})"
        )


def as_sentence_transformer(encoder: Encoder) -> SentenceTransformer:
    """A ``SentenceTransformer`` whose ``encode`` gives what ``encoder.encode_texts`` gives.

    Raises:
        ValueError: The encoder is not an LLM2CLIP encoder.
    """
    tower = encoder.text_tower if isinstance(encoder, DualEncoder) else None
    if not isinstance(tower, LlmTextTower | FolderTextTower):
        raise ValueError(f"{encoder.info.name!r} is not an LLM2CLIP encoder")
    module = CaptionModule(tower, name=encoder.info.name, dim=encoder.info.dim)
    return SentenceTransformer(modules=[module], device=tower.device)
