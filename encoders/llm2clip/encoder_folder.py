"""An encoder in a folder of this library's own format: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

Each tower is built and read from the one weights file when it is first used: building an index never loads the
language model, a text query never loads the vision tower. Unknown keys and tensors are errors. Where ``dtype`` is
``int8``, matrices and kernels are stored as whole numbers from -127 to 127 with a scale for each row, a quarter of
float32; computing stays in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from llm2clip.common.files import file_sha256
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.dual_encoder import DualEncoder, ReaderTower, pick_device, pick_dtype, to_array
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import settings_sha256
from llm2clip.encoders.images.preprocess import PixelTower
from llm2clip.encoders.layers.efficientnet_lite import LiteTower
from llm2clip.encoders.layers.llama import AdapterConfig, TextAdapter
from llm2clip.encoders.llm2clip.folder_config import HeadConfig, Llm2ClipConfig, read_config
from llm2clip.encoders.text.caption_tokenizer import TextReader, open_reader
from llm2clip.encoders.text.packed import build_language, pooled_states
from llm2clip.encoders.vision.tower_detection import TowerShape
from llm2clip.encoders.vision.vision_tower import build_tower
from llm2clip.encoders.weights.safetensors_io import (
    DTYPES,
    TensorSpec,
    check_tensors,
    read_header,
    read_tensors,
)
from llm2clip.encoders.weights.tensor_names import (
    ADAPTER,
    FAMILY,
    LANGUAGE_MODEL,
    LOGIT_SCALE,
    PROJECTION,
    TOKENIZER_FILE,
    VISION,
    WEIGHTS_FILE,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Module = TypeVar("Module", bound=nn.Module)
_IMAGES, _TEXTS = (VISION, PROJECTION), (LANGUAGE_MODEL, ADAPTER)
"""Prefixes of the tensors of each tower."""
SCALE = ".scale"
"""Ends the name of the scales of a tensor that is stored as whole numbers."""
_MOST_INT8 = 127

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


class NoInit(TorchFunctionMode):
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


class VisionModule(nn.Sequential):
    """Tower and head. Shape: (B, 3, S, S), normalised pixels -> (B, dim), not normalised."""

    def __init__(self, config: Llm2ClipConfig) -> None:
        super().__init__()
        shape = config.vision
        self.vision = (
            build_tower(shape, projection=False) if isinstance(shape, TowerShape) else LiteTower(shape)
        )
        self.visual_projection = build_head(config.image_head, width=shape.width, dim=config.adapter.dim)


def build_head(config: HeadConfig, *, width: int, dim: int) -> nn.Module:
    """A module from states of a vision tower to vectors. Shape: (B, width) -> (B, dim)."""
    if config.kind == "none":
        return nn.Identity()
    if config.kind == "linear":
        return nn.Linear(width, dim, bias=config.bias)
    return TextAdapter(
        width,
        dim,
        blocks=config.blocks,
        expansion=config.expansion,
        normalize_input=config.normalize_input,
    )


def build_adapter(config: AdapterConfig) -> TextAdapter:
    """A text adapter with new weights."""
    return TextAdapter(
        config.width,
        config.dim,
        blocks=config.blocks,
        expansion=config.expansion,
        normalize_input=config.normalize_input,
    )


class TextModule(nn.Module):
    """Language model and adapter; between them the states of the caption's own tokens are averaged."""

    def __init__(self, config: Llm2ClipConfig) -> None:
        super().__init__()
        self.language_model = build_language(config.text)
        self.text_adapter = build_adapter(config.adapter)


@final
class FolderTextTower(ReaderTower[TextReader]):
    """Texts through the tokenizer, the language model and the adapter of the folder."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""
        return list(self.reader.count_tokens(texts))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""
        return to_array(self.project(self.features(texts)))

    def features(self, texts: Sequence[str]) -> Tensor:
        """Pooled states of the language model. Shape: (len(texts), width), float32, any scale."""
        module: TextModule = self.module()
        return pooled_states(module.language_model, self.reader.rows(texts), device=torch.device(self.device))

    def pooled(self, ids_BL: Tensor, attention_BL: Tensor, pooled_BL: Tensor) -> Tensor:
        """States of what ``TextReader.batch`` gave. Shape: (B, width), float32, any scale."""
        module: TextModule = self.module()
        with torch.inference_mode():
            return self.reader.pool(module.language_model(ids_BL, attention_BL).float(), pooled_BL)

    def project(self, features: Tensor) -> Tensor:
        """Stored states in the shared space. Shape: (B, width) -> (B, dim), not normalised."""
        module: TextModule = self.module()
        weight = next(module.text_adapter.parameters())
        features = torch.as_tensor(features).to(weight.device, weight.dtype)
        with torch.inference_mode():
            projected: Tensor = module.text_adapter(features)
        return projected


def load_folder(folder: Path, *, device: str = "auto", dtype: str = "auto") -> DualEncoder:
    """Open a folder of the format that ``save_llm2clip`` writes; a tower is built and read when it is first used."""
    config = read_config(folder)
    place = pick_device(device)
    file = _WeightsFile(
        path=folder / WEIGHTS_FILE,
        header=read_header(folder / WEIGHTS_FILE),
        config=config,
        dtype=pick_dtype(dtype, device=place, stored=config.dtype),
        device=place,
    )
    file.check_sizes()
    images = PixelTower(
        lambda: file.load(VisionModule, prefixes=_IMAGES),
        preprocess=config.preprocessing,
        device=place,
        dtype=file.dtype,
    )
    texts = FolderTextTower(
        lambda: file.load(TextModule, prefixes=_TEXTS),
        reader=lambda: open_reader(folder, config.text_rules, config=config.text, name=config.name),
        device=place,
        dtype=file.dtype,
    )
    return DualEncoder(
        images,
        texts,
        describe=lambda: _describe(folder, file, capacity=texts.reader.capacity),
        source=folder,
    )


@dataclass(frozen=True, kw_only=True)
class _WeightsFile:
    """The weights of both towers, and how a tower is made of them."""

    path: Path
    header: Mapping[str, TensorSpec]
    config: Llm2ClipConfig
    dtype: torch.dtype
    """What it computes in."""
    device: torch.device

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
        others = {
            name: spec for name, spec in self.header.items() if not name.startswith((*_IMAGES, *_TEXTS))
        }
        check_tensors(others, {LOGIT_SCALE: TensorSpec((), "F32")}, path=self.path)

    @property
    def parameters(self) -> int:
        """Numbers in the file without the scales of rows."""
        return sum(
            spec.size
            for name, spec in self.header.items()
            if not (name.endswith(SCALE) and name.removesuffix(SCALE) in self.header)
        )

    def load(self, make: Callable[[Llm2ClipConfig], Module], *, prefixes: tuple[str, ...]) -> Module:
        """The module of one tower with its weights, for inference; every tensor is compared with it."""
        with NoInit():
            module = make(self.config)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        whole = self.config.dtype == "int8"
        if whole:
            expected = stored_specs(shapes)
        else:
            expected = {name: TensorSpec(shape, DTYPES[self.config.dtype]) for name, shape in shapes.items()}
        mine = {name: spec for name, spec in self.header.items() if name.startswith(prefixes)}
        check_tensors(mine, expected, path=self.path)
        tensors = read_tensors(self.path, expected, dtype=torch.float32 if whole else self.dtype)
        if whole:
            tensors = {name: tensor.to(self.dtype) for name, tensor in unpack_int8(tensors).items()}
        for name, tensor in tensors.items():
            if tensor.ndim == 4:
                tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
        module.load_state_dict(tensors, assign=True)
        return module.requires_grad_(False).eval().to(self.device)


def _describe(folder: Path, file: _WeightsFile, *, capacity: int) -> EncoderInfo:
    config = file.config
    return EncoderInfo(
        name=config.name,
        family=FAMILY,
        dim=config.adapter.dim,
        image_size=config.preprocessing.size,
        max_text_tokens=capacity,
        weights_sha256=file_sha256(file.path),
        settings_sha256=settings_sha256(config.settings(), files=[folder / TOKENIZER_FILE]),
        preprocessing=config.preprocessing.identifier,
        parameters=file.parameters,
        languages=config.languages,
        licence=config.licence,
        note=config.note,
    )


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


def pack_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are stored. Rows of a kernel are its outputs."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            packed[name] = tensor.half()
            continue
        rows = tensor.float().flatten(1)
        scale = rows.abs().amax(1).clamp(min=1e-12) / _MOST_INT8
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
        packed[name + SCALE] = scale
    return packed


def unpack_int8(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`pack_int8` stored, in float32, within half a scale."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE):
            continue
        scale = stored.get(name + SCALE)
        tensors[name] = tensor if scale is None else tensor * scale.view(-1, *[1] * (tensor.ndim - 1))
    return tensors
