"""An encoder as a folder: ``config.json``, ``model.safetensors``, ``tokenizer.json``, and often a card.

No file of it can run code. What the model does not use is an error, not a remark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm2clip.encoders.core.config_io import from_json, to_json
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.images.preprocess import Preprocess
from llm2clip.encoders.layers.llama import LlamaConfig
from llm2clip.encoders.layers.nano_vision import NanoVisionConfig
from llm2clip.encoders.layers.text_adapter import AdapterConfig
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.encoders.weights.tensor_names import (
    CONFIG_FILE,
    FAMILY,
    FORMAT,
    TOKENIZER_FILE,
    VERSION,
    WEIGHTS_FILE,
)

if TYPE_CHECKING:
    pass


StoredDtype = Literal["float16", "bfloat16", "float32"]

_FOR_PEOPLE = frozenset({"name", "note", "licence", "languages"})
_IDENTIFIED = frozenset({"crop", "order", "parity"})
"""Settings of the preprocessing that only its identifier counts; they came after the first indexes."""


@dataclass(frozen=True, kw_only=True)
class Llm2ClipConfig:
    """Everything about an LLM2CLIP encoder but its weights: what ``config.json`` holds."""

    name: str
    """What the encoder is called."""
    note: str
    """One line on what it is good for and no good at."""
    licence: str
    """Licence of the weights."""
    languages: tuple[str, ...]
    """Language codes of the texts it was trained on."""
    vision: NanoVisionConfig
    """The vision tower."""
    text: LlamaConfig
    """The language model."""
    adapter: AdapterConfig
    """From the language model to the shared space."""
    preprocessing: Preprocess
    """What is done to an image."""
    text_rules: TextRules
    """What is put around a text, and how much of it is read."""
    dtype: StoredDtype = "float16"
    """How the weights are stored."""

    def __post_init__(self) -> None:
        if self.vision.batch_norm:
            raise ValueError("vision.batch_norm is for training; fold it into the convolutions first")
        if self.preprocessing.size != self.vision.image_size:
            side = self.vision.image_size
            raise ValueError(
                f"preprocessing.size is {self.preprocessing.size}, but vision.image_size is {side}"
            )
        if self.adapter.width != self.text.hidden_size:
            width = self.text.hidden_size
            raise ValueError(f"adapter.width is {self.adapter.width}, but text.hidden_size is {width}")

    def settings(self) -> dict[str, Any]:
        """What shapes the vectors: all but name, note, licence and languages."""
        told = {key: value for key, value in to_json(self).items() if key not in _FOR_PEOPLE}
        told["preprocessing"] = {k: v for k, v in told["preprocessing"].items() if k not in _IDENTIFIED}
        return told


def read_config(folder: Path) -> Llm2ClipConfig:
    """The configuration of an encoder folder.

    Raises:
        ModelError: The folder or a file is missing, of another format or version, or a key is unknown,
        missing or wrong.
    """
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise ModelError(f"no such encoder folder: {folder}")
    absent = [name for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE) if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{folder} is not an encoder folder: it has no {', '.join(absent)} "
            f"(expected {CONFIG_FILE}, {WEIGHTS_FILE} and {TOKENIZER_FILE})"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: expected an object, got {type(data).__name__}")
    _check_format(data, path)
    own = {key: value for key, value in data.items() if key not in ("format", "version", "family")}
    return from_json(Llm2ClipConfig, own, where=str(path))


def write_config(folder: Path, config: Llm2ClipConfig) -> None:
    """Write ``config.json``, the same bytes for the same configuration.

    Raises:
        OSError: The file cannot be written.
    """
    data = {"format": FORMAT, "version": VERSION, "family": FAMILY} | to_json(config)
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _check_format(data: Mapping[str, Any], path: Path) -> None:
    if data.get("format") != FORMAT:
        raise ModelError(
            f"{path}: expected format {FORMAT!r}, got {data.get('format')!r}; it is another kind of folder"
        )
    if data.get("version") != VERSION:
        raise ModelError(
            f"{path}: format version {data.get('version')!r}, this release reads {VERSION}; "
            "use the release that wrote it, or export the encoder again"
        )
    if data.get("family") != FAMILY:
        raise ModelError(f"{path}: expected family {FAMILY!r}, got {data.get('family')!r}")
