"""Former name of ``load_folder``; being replaced."""

from __future__ import annotations

from pathlib import Path

from llm2clip.encoders.core.dual_encoder import DualEncoder
from llm2clip.encoders.llm2clip.encoder_folder import load_folder


class Llm2ClipEncoder:  # noqa: D101
    @classmethod
    def from_folder(cls, folder: str | Path, *, device: str = "auto", dtype: str = "auto") -> DualEncoder:  # noqa: D102
        return load_folder(Path(folder), device=device, dtype=dtype)
