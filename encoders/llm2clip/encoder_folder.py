"""An encoder in a folder of this library's own format: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

Each tower is read from the one weights file when it is first used: building an index never loads the language
model, a text query never loads the vision tower. Unknown keys and tensors are errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from llm2clip.common.files import file_sha256
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.dual_encoder import DualEncoder, TextTower, pick_device, pick_dtype, to_array
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import from_json, read_object, settings_sha256, to_json
from llm2clip.encoders.images.preprocess import PixelTower, Preprocess
from llm2clip.encoders.layers.bert import BertConfig
from llm2clip.encoders.layers.lite_tower import LiteTower, LiteTowerConfig
from llm2clip.encoders.layers.llama import AdapterConfig, LlamaConfig, TextAdapter
from llm2clip.encoders.text.caption_tokenizer import TextReader, TextRules
from llm2clip.encoders.text.language_config import build_language
from llm2clip.encoders.text.packed import pooled_states
from llm2clip.encoders.weights.int8_storage import stored_specs, unpack_int8
from llm2clip.encoders.weights.safetensors_io import (
    DTYPES,
    TensorSpec,
    check_tensors,
    read_header,
    read_tensors,
)
from llm2clip.encoders.weights.tensor_names import (
    CONFIG_FILE,
    FAMILY,
    FORMAT,
    LOGIT_SCALE,
    TOKENIZER_FILE,
    VERSION,
    WEIGHTS_FILE,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Module = TypeVar("Module", bound=nn.Module)
StoredDtype = Literal["float16", "bfloat16", "float32", "int8"]

_FOR_PEOPLE = frozenset({"name", "note", "licence", "languages"})
_IDENTIFIED = frozenset({"crop", "order", "parity"})
"""Preprocessing settings that are newer than the first indexes; they count through its identifier only."""


@dataclass(frozen=True, kw_only=True)
class Llm2ClipConfig:
    """Everything about an LLM2CLIP encoder but its weights: what ``config.json`` holds."""

    name: str
    """Name of the encoder."""
    note: str
    """One line: what it is good at and what it is not."""
    licence: str
    """Licence of the weights."""
    languages: tuple[str, ...]
    """Language codes of the texts it was trained on."""
    vision: LiteTowerConfig
    """The vision tower."""
    text: LlamaConfig | BertConfig
    """The language model."""
    adapter: AdapterConfig
    """From the language model to the shared space."""
    preprocessing: Preprocess
    """Image preprocessing."""
    text_rules: TextRules
    """Wrapper and length limits of texts."""
    dtype: StoredDtype = "float16"
    """Dtype of the stored weights; ``int8``: matrices as whole numbers with a scale for each row."""

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
        """The settings that shape vectors: all but name, note, licence and languages."""
        told = {key: value for key, value in to_json(self).items() if key not in _FOR_PEOPLE}
        told["preprocessing"] = {k: v for k, v in told["preprocessing"].items() if k not in _IDENTIFIED}
        return told


def read_config(folder: Path) -> Llm2ClipConfig:
    """The configuration of an encoder folder."""
    if not folder.is_dir():
        raise ModelError(f"no such encoder folder: {folder}")
    absent = [name for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE) if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{folder} is not an encoder folder: it has no {', '.join(absent)} "
            f"(expected {CONFIG_FILE}, {WEIGHTS_FILE} and {TOKENIZER_FILE})"
        )
    path = folder / CONFIG_FILE
    data = read_object(path)
    _check_format(data, path)
    own = {key: value for key, value in data.items() if key not in ("format", "version", "family")}
    return from_json(Llm2ClipConfig, own, where=str(path))


def write_config(folder: Path, config: Llm2ClipConfig) -> None:
    """Write ``config.json``, the same bytes for the same configuration."""
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


_FILLS = frozenset(
    {
        init.kaiming_uniform_,
        init.normal_,
        init.uniform_,
        Tensor.fill_,
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.zero_,
    }
)


class _NoInit(TorchFunctionMode):
    """Leaves new parameters unfilled, as they are about to be replaced.

    The meta device would do the same, at a second for what it imports.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        if func in _FILLS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


class _VisionModule(nn.Sequential):
    """Tower and projection. Shape: (B, 3, S, S), normalised pixels -> (B, dim), not normalised."""

    def __init__(self, config: Llm2ClipConfig) -> None:
        super().__init__()
        self.vision = LiteTower(config.vision)
        self.visual_projection = nn.Linear(self.vision.width, config.adapter.dim, bias=False)


class _TextModule(nn.Module):
    """Language model and adapter; between them the states of the caption's own tokens are averaged."""

    def __init__(self, config: Llm2ClipConfig) -> None:
        super().__init__()
        shape = config.adapter
        self.language_model = build_language(config.text)
        self.text_adapter = TextAdapter(
            shape.width,
            shape.dim,
            blocks=shape.blocks,
            expansion=shape.expansion,
            normalize_input=shape.normalize_input,
        )


@final
class _FolderTextTower(TextTower):
    """Texts through the tokenizer and the language model of the folder."""

    def __init__(
        self,
        load: Callable[[], nn.Module],
        *,
        reader: Callable[[], TextReader],
        device: torch.device,
        dtype: object,
    ) -> None:
        super().__init__(load, device=device, dtype=dtype)
        self._make_reader, self._place = reader, device

    @cached_property
    def reader(self) -> TextReader:
        """The tokenizer; read on first use."""
        return self._make_reader()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return list(self.reader.count_tokens(texts))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        module: _TextModule = self.module()
        with torch.inference_mode():
            states = pooled_states(module.language_model, self.reader.rows(texts), device=self._place)
            weight = next(module.text_adapter.parameters())
            return to_array(module.text_adapter(states.to(weight.dtype)))


def load_folder(folder: Path, *, device: str = "auto", dtype: str = "auto") -> DualEncoder:
    """Open a folder of the format that ``save_llm2clip`` writes; no weight is read yet."""
    config = read_config(folder)
    place = pick_device(device)
    kind = pick_dtype(dtype, device=place, stored=config.dtype)
    weights = folder / WEIGHTS_FILE
    header = read_header(weights)
    with _NoInit():
        vision, text = _VisionModule(config), _TextModule(config)
    shapes = {
        name: tuple(tensor.shape) for module in (vision, text) for name, tensor in module.state_dict().items()
    }
    check_tensors(header, _expected(shapes, config.dtype), path=weights)
    images = PixelTower(
        lambda: _filled(vision, _read(weights, vision, config, dtype=kind), device=place),
        preprocess=config.preprocessing,
        device=place,
        dtype=kind,
    )
    texts = _FolderTextTower(
        lambda: _filled(text, _read(weights, text, config, dtype=kind), device=place),
        reader=lambda: _reader(folder, config),
        device=place,
        dtype=kind,
    )
    parameters = sum(math.prod(shape) for shape in shapes.values()) + 1
    return DualEncoder(
        images,
        texts,
        describe=lambda: _describe(folder, config, capacity=texts.reader.capacity, parameters=parameters),
        source=folder,
    )


def _expected(shapes: Mapping[str, tuple[int, ...]], dtype: StoredDtype) -> dict[str, TensorSpec]:
    """The tensors of a weights file."""
    if dtype == "int8":
        stored = stored_specs(shapes)
    else:
        stored = {name: TensorSpec(shape, DTYPES[dtype]) for name, shape in shapes.items()}
    return stored | {LOGIT_SCALE: TensorSpec((), "F32")}


def _read(
    weights: Path, module: nn.Module, config: Llm2ClipConfig, *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of a module, in the dtype it computes in."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if config.dtype != "int8":
        return read_tensors(weights, list(shapes), dtype=dtype)
    stored = read_tensors(weights, list(stored_specs(shapes)), dtype=torch.float32)
    return {name: tensor.to(dtype) for name, tensor in unpack_int8(stored).items()}


def _filled(module: Module, tensors: dict[str, Tensor], *, device: torch.device) -> Module:
    """The module with its weights, for inference."""
    for name, tensor in tensors.items():
        if tensor.ndim == 4:
            tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False).eval().to(device)


def _reader(folder: Path, config: Llm2ClipConfig) -> TextReader:
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelError(f"{path} is not a tokenizer file: {error}") from error
    if tokenizer.get_vocab_size() > config.text.vocab_size:
        raise ModelError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, but {CONFIG_FILE} says text.vocab_size is "
            f"{config.text.vocab_size}; they are not of the same model"
        )
    try:
        return TextReader(tokenizer, config.text_rules)
    except ValueError as error:
        raise ModelError(f"{folder / CONFIG_FILE}: text_rules: {error}") from error


def _describe(folder: Path, config: Llm2ClipConfig, *, capacity: int, parameters: int) -> EncoderInfo:
    return EncoderInfo(
        name=config.name,
        family=FAMILY,
        dim=config.adapter.dim,
        image_size=config.preprocessing.size,
        max_text_tokens=capacity,
        weights_sha256=file_sha256(folder / WEIGHTS_FILE),
        settings_sha256=settings_sha256(config.settings(), files=[folder / TOKENIZER_FILE]),
        preprocessing=config.preprocessing.identifier,
        parameters=parameters,
        languages=config.languages,
        licence=config.licence,
        note=config.note,
    )
