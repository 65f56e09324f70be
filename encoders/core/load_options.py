"""How to load an encoder: one frozen record from ``load_encoder`` down to the code that reads weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from llm2clip.encoders.core.base import Parity

Preprocessing = Literal["native", "reference"]

_STORED: dict[str, Parity] = {"native": "native", "reference": "upstream", "upstream": "upstream"}
"""Value of ``preprocessing`` -> the word that configurations and index manifests store; the last is an old spelling."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of ``load_encoder``; the defaults are its defaults."""

    device: str = "auto"
    """``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ..."""
    dtype: str = "auto"
    """Precision of weights and computation: ``"auto"``, ``"float32"``, ``"float16"``, ``"bfloat16"``; a published
    language model can also be quantised to ``"int8"`` or ``"int4"``."""
    language_model: str | os.PathLike[str] | None = None
    """LLM2CLIP: name or folder of another language model than the one it was trained with."""
    preprocessing: Preprocessing = "native"
    """``"reference"`` prepares texts and images exactly as the original implementation, mistakes included."""

    def __post_init__(self) -> None:
        if self.preprocessing not in _STORED:
            raise ValueError(f"preprocessing must be 'native' or 'reference', got {self.preprocessing!r}")
        if self.parity == "upstream":
            object.__setattr__(self, "preprocessing", "reference")

    @property
    def parity(self) -> Parity:
        """The word for :attr:`preprocessing` that configurations and index manifests store."""
        return _STORED[self.preprocessing]
