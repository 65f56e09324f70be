"""An encoder as a folder: ``config.json``, ``model.safetensors``, ``tokenizer.json``, and often a card.

No file of it can run code. What the model does not use is an error, not a remark.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import torch

from llm2clip.encoders.errors import ModelError
from llm2clip.encoders.llama import LlamaConfig
from llm2clip.encoders.preprocess import Preprocess
from llm2clip.encoders.strict import from_json, to_json
from llm2clip.encoders.tensors import write_tensors
from llm2clip.encoders.text import TextRules
from llm2clip.encoders.vision import NanoVisionConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT: Final = "llm2clip-encoder"
VERSION: Final = 1
FAMILY: Final = "llm2clip"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
README_FILE = "README.md"

VISION = "vision."
PROJECTION = "visual_projection."
LANGUAGE_MODEL = "language_model."
ADAPTER = "text_adapter."
LOGIT_SCALE = "logit_scale"
"""Names and prefixes of tensors. All are of the configuration's dtype but the scale, which is one float32."""

StoredDtype = Literal["float16", "bfloat16", "float32"]

_FOR_PEOPLE = frozenset({"name", "note", "licence", "languages"})
_IDENTIFIED = frozenset({"crop", "order", "parity"})
"""Settings of the preprocessing that only its identifier counts; they came after the first indexes."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Shape of the text adapter."""

    width: int
    """Width of the language model's pooled state."""
    dim: int
    """Length of the vectors of both sides."""
    blocks: int = 4
    """Residual blocks."""
    expansion: int = 2
    """Inner width of a block in multiples of ``width``."""
    normalize_input: bool = True
    """Scale the pooled state to unit length first."""


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
    """What is done to a picture."""
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


def save_llm2clip(
    folder: str | Path,
    *,
    config: Llm2ClipConfig,
    vision: nn.Module,
    projection: nn.Module,
    language_model: nn.Module,
    adapter: nn.Module,
    logit_scale: float | Tensor,
    tokenizer_json: str | Path,
    dtype: torch.dtype | None = None,
) -> None:
    """Write trained parts as an encoder folder, once they have proved to load.

    Args:
        folder: Where to; made if need be. Files of the same names are replaced, after the new ones are checked.
        config: What to write beside the weights; its ``dtype`` gives way to the argument.
        vision: The vision tower, batch normalisation folded.
        projection: A linear layer without bias from the tower's width to ``config.adapter.dim``.
        language_model: A ``BidirectionalLlama``, or anything with its parameter names.
        adapter: A ``TextAdapter``.
        logit_scale: The learnt logarithm of the scale of the scores.
        tokenizer_json: A tokenizer file to copy, or the text of one.
        dtype: How to store the weights; ``None`` for ``config.dtype``.

    Raises:
        ModelError: The parts do not fit the configuration, or a weight is not finite once stored.
        OSError: A file cannot be written.
    """
    from llm2clip.encoders.llm2clip import Llm2ClipEncoder

    if dtype is not None:
        config = dataclasses.replace(config, dtype=_dtype_name(dtype))
    stored = getattr(torch, config.dtype)
    parts = {VISION: vision, PROJECTION: projection, LANGUAGE_MODEL: language_model, ADAPTER: adapter}
    tensors = {
        prefix + name: tensor.detach().cpu().to(stored)
        for prefix, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    tensors[LOGIT_SCALE] = torch.as_tensor(logit_scale).detach().cpu().to(torch.float32).reshape(())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_text = isinstance(tokenizer_json, str) and tokenizer_json.lstrip().startswith("{")
    tokenizer = str(tokenizer_json) if is_text else Path(tokenizer_json).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        draft = Path(name)
        (draft / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
        write_tensors(draft / WEIGHTS_FILE, tensors)
        write_config(draft, config)
        Llm2ClipEncoder.from_folder(draft, device="cpu").load_all()
        for file in (WEIGHTS_FILE, TOKENIZER_FILE, CONFIG_FILE):
            (draft / file).replace(folder / file)


def _dtype_name(dtype: torch.dtype) -> StoredDtype:
    for name in get_args(StoredDtype):
        if dtype == getattr(torch, name):
            return cast("StoredDtype", name)
    raise ValueError(f"weights are stored as {' or '.join(get_args(StoredDtype))}, got {dtype}")


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
