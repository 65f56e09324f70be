"""What an encoder folder states in ``config.json``, and what its weights file must hold then.

Unknown keys and tensors are errors. Where ``dtype`` is ``int8``, matrices and kernels are stored as whole numbers from
-127 to 127 with a scale for each row, a quarter of float32; computing stays in floating point. Importing this loads no
torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import (
    MOST_LAYERS,
    check_size,
    from_json,
    read_object,
    to_json,
)
from llm2clip.encoders.images.preprocess import Preprocess
from llm2clip.encoders.layers.configs import AdapterConfig, BertConfig, LiteTowerConfig, LlamaConfig
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.encoders.vision.tower_detection import TowerShape
from llm2clip.encoders.weights.safetensors_io import DTYPES, TensorSpec, check_tensors
from llm2clip.encoders.weights.tensor_names import (
    ADAPTER,
    CONFIG_FILE,
    FAMILY,
    FOLDER_VERSIONS,
    FORMAT,
    LANGUAGE_MODEL,
    LOGIT_SCALE,
    PROJECTION,
    TOKENIZER_FILE,
    VISION,
    WEIGHTS_FILE,
)

StoredDtype = Literal["float16", "bfloat16", "float32", "int8"]

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "silu")
IMAGES, TEXTS = (VISION, PROJECTION), (LANGUAGE_MODEL, ADAPTER)
"""Prefixes of the tensors of each tower."""
SCALE = ".scale"
"""Ends the name of the scales of a tensor that is stored as whole numbers."""

_MOST_BLOCKS, _MOST_SIDE = 64, 4096
_FOR_PEOPLE = frozenset({"name", "note", "licence", "languages"})
_IDENTIFIED = frozenset({"crop", "order", "parity"})
"""Preprocessing settings that are newer than the first indexes; they count through its identifier only."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """From the vision tower's state to the shared space."""

    kind: Literal["linear", "adapter", "none"] = "linear"
    """A projection, residual blocks before it, or the tower's state itself."""
    bias: bool = False
    """Whether a projection has a bias."""
    blocks: int = 0
    """Residual blocks of an adapter."""
    expansion: int = 2
    """Inner width of a block in multiples of the outer one."""
    normalize_input: bool = False
    """Whether an adapter first scales the state to unit length."""

    def __post_init__(self) -> None:
        check_blocks("image_head", self.blocks, self.expansion)


def check_blocks(name: str, blocks: int, expansion: int) -> None:
    """Raise ``ValueError`` where an adapter would be larger than any that is trained."""
    if not 0 <= blocks <= _MOST_BLOCKS or not 1 <= expansion <= _MOST_BLOCKS:
        raise ValueError(
            f"{name}: blocks must be from 0 to {_MOST_BLOCKS} and expansion from 1, got {blocks} and {expansion}"
        )


def _check_tower(shape: TowerShape) -> None:
    """Raise ``ValueError`` where a tower has sizes that none has."""
    check_size("vision.depth", shape.depth, most=MOST_LAYERS)
    for name in ("image_size", "patch_size", "heads", "rope_grid"):
        check_size(f"vision.{name}", getattr(shape, name), most=_MOST_SIDE)
    for name in ("width", "hidden", "dim"):
        check_size(f"vision.{name}", getattr(shape, name))
    if (
        shape.width % shape.heads
        or shape.image_size % shape.patch_size
        or shape.activation not in ACTIVATIONS
    ):
        got = (
            f"{shape.width}, {shape.heads}, {shape.image_size}, {shape.patch_size}, {shape.activation!r:.40}"
        )
        raise ValueError(
            "vision: width must be a multiple of heads, image_size of patch_size, and activation one of "
            f"{', '.join(ACTIVATIONS)}; got {got}"
        )


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
    vision: LiteTowerConfig | TowerShape
    """The vision tower: an EfficientNet-Lite, or one of a published layout without its projection."""
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
    image_head: HeadConfig = HeadConfig()
    """From the vision tower to the shared space."""

    def __post_init__(self) -> None:
        if isinstance(self.vision, LiteTowerConfig) and self.vision.batch_norm:
            raise ValueError("vision.batch_norm is for training; fold it into the convolutions first")
        if self.preprocessing.size != self.vision.image_size:
            side = self.vision.image_size
            raise ValueError(
                f"preprocessing.size is {self.preprocessing.size}, but vision.image_size is {side}"
            )
        if self.adapter.width != self.text.hidden_size:
            width = self.text.hidden_size
            raise ValueError(f"adapter.width is {self.adapter.width}, but text.hidden_size is {width}")

        if isinstance(self.vision, TowerShape):
            _check_tower(self.vision)
        check_blocks("adapter", self.adapter.blocks, self.adapter.expansion)
        if self.image_head.kind == "none" and self.vision_width != self.adapter.dim:
            raise ValueError(
                f"without an image head the vectors have the tower's width {self.vision_width}, but adapter.dim is "
                f"{self.adapter.dim}"
            )

    @property
    def vision_width(self) -> int:
        """Length of the vision tower's state."""
        return self.vision.width

    @property
    def largest(self) -> dict[str, int]:
        """Numbers in the largest matrices of each part: what a file must at least hold before modules are built."""
        text, adapter, head, vision = self.text, self.adapter, self.image_head, self.vision
        found = {
            "text": text.hidden_size * max(text.vocab_size, text.intermediate_size, text.hidden_size),
            "adapter": adapter.width * max(adapter.dim, adapter.width * adapter.expansion),
            "image_head": vision.width * adapter.dim if head.kind != "none" else 0,
        }
        if isinstance(text, LlamaConfig):
            found["text"] = max(found["text"], text.hidden_size * text.num_attention_heads * text.head_dim)
        if isinstance(vision, TowerShape):
            found["vision"] = vision.width * max(vision.width, vision.hidden)
        return found

    @property
    def depth(self) -> int:
        """Blocks of all parts: a file has at least as many tensors."""
        vision = self.vision.depth if isinstance(self.vision, TowerShape) else 0
        return vision + self.text.num_hidden_layers + self.adapter.blocks + self.image_head.blocks

    def settings(self) -> dict[str, Any]:
        """The settings that shape vectors: all but name, note, licence and languages."""
        told = {key: value for key, value in to_json(self).items() if key not in _FOR_PEOPLE}
        if self.image_head == HeadConfig():
            told.pop("image_head")  # newer than the first indexes
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
    data = {"format": FORMAT, "version": FOLDER_VERSIONS[-1], "family": FAMILY} | to_json(config)
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _check_format(data: Mapping[str, Any], path: Path) -> None:
    if data.get("format") != FORMAT:
        raise ModelError(
            f"{path}: expected format {FORMAT!r}, got {data.get('format')!r}; it is another kind of folder"
        )
    if data.get("version") not in FOLDER_VERSIONS:
        known = " and ".join(map(str, FOLDER_VERSIONS))
        raise ModelError(
            f"{path}: format version {data.get('version')!r}, this release reads {known}; "
            "use the release that wrote it, or export the encoder again"
        )
    if data.get("family") != FAMILY:
        raise ModelError(f"{path}: expected family {FAMILY!r}, got {data.get('family')!r}")


@dataclass(frozen=True, kw_only=True)
class FolderWeights:
    """The weights of both towers."""

    path: Path
    """The file."""
    header: Mapping[str, TensorSpec]
    """What it holds."""
    config: Llm2ClipConfig
    """What it should hold."""

    def check_sizes(self) -> None:
        """Refuse sizes that the file cannot have, before memory is taken for them, and tensors of neither tower."""
        held, config = sum(spec.size for spec in self.header.values()), self.config
        large = {part: size for part, size in config.largest.items() if size > held}
        if large or config.depth > len(self.header):
            said = ", ".join(f"{part} has a matrix of {size:,} numbers" for part, size in large.items())
            raise ModelError(
                f"{self.path} does not fit its config.json: it holds {held:,} numbers in {len(self.header):,} "
                f"tensors, but {said or f'there are {config.depth:,} blocks'}"
            )
        others = {name: spec for name, spec in self.header.items() if not name.startswith((*IMAGES, *TEXTS))}
        check_tensors(others, {LOGIT_SCALE: TensorSpec((), "F32")}, path=self.path)

    @property
    def parameters(self) -> int:
        """Numbers in the file without the scales of rows."""
        return sum(
            spec.size
            for name, spec in self.header.items()
            if not (name.endswith(SCALE) and name.removesuffix(SCALE) in self.header)
        )

    def check(
        self, shapes: Mapping[str, tuple[int, ...]], *, prefixes: tuple[str, ...]
    ) -> dict[str, TensorSpec]:
        """The stored tensors of a tower, which has tensors of these shapes; ``ModelError`` if the file differs."""
        if self.config.dtype == "int8":
            expected = stored_specs(shapes)
        else:
            expected = {name: TensorSpec(shape, DTYPES[self.config.dtype]) for name, shape in shapes.items()}
        mine = {name: spec for name, spec in self.header.items() if name.startswith(prefixes)}
        check_tensors(mine, expected, path=self.path)
        return expected


def stored_specs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    """The tensors of a file that holds tensors of these shapes."""
    specs: dict[str, TensorSpec] = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            specs[name] = TensorSpec(shape, "F16")
        else:
            specs[name] = TensorSpec(shape, "I8")
            specs[name + SCALE] = TensorSpec(shape[:1], "F32")
    return specs
