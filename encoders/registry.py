"""Encoders by name or folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from llm2clip.encoders.errors import ModelError

if TYPE_CHECKING:
    from llm2clip.encoders.base import Encoder

_NANO = Path(__file__).parent / "nano"


@dataclass(frozen=True)
class EncoderCard:
    """What one needs to know to choose an encoder."""

    name: str
    """What ``load_encoder`` takes."""
    summary: str
    """One line: what it is."""
    size: str
    """Weights, e.g. ``"605 MB"``."""
    quality: str
    """What to expect of it on photographs; recall is text to image, from open_clip's table of results."""
    download: str
    """What must be fetched, and from where; empty if nothing."""


_CARDS = (
    EncoderCard(
        name="nano",
        summary="ours, for the sample corpus: emoji and drawn scenes, many languages, long queries",
        size="14 MB",
        quality="no good on photographs",
        download="",
    ),
    EncoderCard(
        name="clip-vit-b-32",
        summary="OpenAI CLIP ViT-B/32: photographs, English, up to 77 tokens",
        size="605 MB",
        quality="Flickr30k R@1 58.8, the fastest on photographs",
        download="openai/clip-vit-base-patch32 from the Hugging Face hub",
    ),
    EncoderCard(
        name="clip-vit-b-16",
        summary="OpenAI CLIP ViT-B/16: photographs, English, up to 77 tokens",
        size="599 MB",
        quality="Flickr30k R@1 62.2, four times the work of B/32",
        download="openai/clip-vit-base-patch16 from the Hugging Face hub",
    ),
    EncoderCard(
        name="clip-vit-l-14",
        summary="OpenAI CLIP ViT-L/14: photographs, English, up to 77 tokens",
        size="1.7 GB",
        quality="Flickr30k R@1 65.0, eighteen times the work of B/32",
        download="openai/clip-vit-large-patch14 from the Hugging Face hub",
    ),
)


def list_encoders() -> list[EncoderCard]:
    """The built-in encoders, smallest first. Nothing is loaded or fetched."""
    return list(_CARDS)


def load_encoder(
    name_or_path: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto"
) -> Encoder:
    """Open an encoder; its weights are read when they are first needed.

    Args:
        name_or_path: A name that ``list_encoders`` gives, or a folder: one of our format (``config.json``,
            ``model.safetensors``, ``tokenizer.json``), or a CLIP model as the Hugging Face hub lays it out.
        device: ``"auto"`` (CUDA if there is any), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        dtype: Of the arithmetic: ``"auto"`` (float32 on a CPU), ``"float32"``, ``"float16"``, ``"bfloat16"``.

    Raises:
        ModelError: The name is unknown, or files are missing, damaged or cannot be fetched.
        ValueError: There is no such device or dtype.
    """
    names = [card.name for card in _CARDS]
    name = os.fspath(name_or_path)
    if name == "nano":
        return _load_folder(_NANO, device=device, dtype=dtype)
    if name in names:
        from llm2clip.encoders.clip import CLIP_MODELS, load_clip

        return load_clip(CLIP_MODELS[name], name=name, device=device, dtype=dtype)
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, device=device, dtype=dtype)
    if not isinstance(name_or_path, str) or path.is_absolute() or path.exists():
        raise ModelError(f"no such encoder folder: {path}")
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ModelError(f"unknown encoder {name!r}, and no folder of that name; {hint}known: {', '.join(names)}")


def _load_folder(path: Path, *, device: str, dtype: str) -> Encoder:
    from llm2clip.encoders.folder import is_clip_folder

    if is_clip_folder(path):
        from llm2clip.encoders.clip import load_clip

        return load_clip(path, name=path.resolve().name, device=device, dtype=dtype)
    from llm2clip.encoders.llm2clip import Llm2ClipEncoder

    return Llm2ClipEncoder.from_folder(path, device=device, dtype=dtype)
