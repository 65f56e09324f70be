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


_NANO_CARD = EncoderCard(
    name="nano",
    summary="ours, for the sample corpus: emoji and drawn scenes, many languages, long queries",
    size="14 MB",
    quality="no good on photographs",
    download="",
)
_LISTED = ("clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14")
"""The baselines that are offered to people, from the catalogue."""


def list_encoders() -> list[EncoderCard]:
    """The built-in encoders, smallest first. Nothing is loaded or fetched."""
    from llm2clip.encoders.baseline_table import baseline_cards

    return [_NANO_CARD, *(card for card in baseline_cards() if card.name in _LISTED)]


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
    name = os.fspath(name_or_path)
    if name == "nano":
        from llm2clip.encoders.llm2clip import Llm2ClipEncoder

        return Llm2ClipEncoder.from_folder(_NANO, device=device, dtype=dtype)
    names = [card.name for card in list_encoders()]
    if name in names:
        from llm2clip.encoders.baselines import load_baseline

        return load_baseline(name, device=device, dtype=dtype)
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, device=device, dtype=dtype)
    if not isinstance(name_or_path, str) or path.is_absolute() or path.exists():
        raise ModelError(f"no such encoder folder: {path}")
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ModelError(f"unknown encoder {name!r}, and no folder of that name; {hint}known: {', '.join(names)}")


def _load_folder(path: Path, *, device: str, dtype: str) -> Encoder:
    from llm2clip.encoders.baselines import folder_family, load_baseline_folder

    if folder_family(path) is not None:
        return load_baseline_folder(path, device=device, dtype=dtype)
    from llm2clip.encoders.llm2clip import Llm2ClipEncoder

    return Llm2ClipEncoder.from_folder(path, device=device, dtype=dtype)
