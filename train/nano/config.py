"""The recipe of the shipped weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm2clip.train.nano.text_stage import TextStageConfig


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Stage 2."""

    dim: int = 256
    """Length of the vectors."""
    text_ridge: float = 1.0
    """Shrinks rare directions of texts."""
    teacher_ridge: float = 3.0
    """The same of the teacher's vectors, where they are fitted for the goals of stage 1."""
    image_ridge: float = 2.0
    """The same of codes."""
    concepts: float = 3.0
    """Weight of a hand-written phrase; that of a class's name is 1."""
    translations: float = 1.0
    """Weight of an everyday word in another language than English."""


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """The recipe of the shipped weights."""

    seed: int = 20
    """Decides order and initial values."""
    pieces: int = 64_000
    """Vocabulary of the text encoder."""
    common: int = 28_000
    """Its most probable pieces, which are kept whatever the texts are."""
    text_tokens: int = 512
    """Most tokens of a text."""
    image_size: int = 240
    """Side of the images in pixels."""
    sharpness: float = 0.25
    """Of the codes of classes."""
    text: TextStageConfig = field(default_factory=TextStageConfig)
    """Stage 1."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Stage 2."""
