"""An encoder in a folder of this library's own format: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

Each tower is read from the one weights file when it is first used: building an index never loads the language
model, a text query never loads the vision tower. Unknown keys and tensors are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from llm2clip.encoders.layers.lite_tower import LiteTower
from llm2clip.encoders.layers.llama import AdapterConfig, TextAdapter
from llm2clip.encoders.llm2clip.folder_config import HeadConfig, Llm2ClipConfig, StoredDtype, read_config
from llm2clip.encoders.text.caption_tokenizer import TextReader
from llm2clip.encoders.text.language_config import build_language, open_reader
from llm2clip.encoders.text.packed import pooled_states
from llm2clip.encoders.vision.tower_detection import TowerShape
from llm2clip.encoders.vision.vision_tower import build_tower
from llm2clip.encoders.weights.int8_storage import SCALE, stored_specs, unpack_int8
from llm2clip.encoders.weights.safetensors_io import (
    DTYPES,
    TensorSpec,
    check_tensors,
    read_header,
    read_tensors,
)
from llm2clip.encoders.weights.tensor_names import (
    FAMILY,
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
_IMAGES = (VISION, PROJECTION)
"""Prefixes of the tensors of the image side."""


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
    """Open a folder of the format that ``save_llm2clip`` writes; no weight is read yet."""
    config = read_config(folder)
    place = pick_device(device)
    kind = pick_dtype(dtype, device=place, stored=config.dtype)
    weights = folder / WEIGHTS_FILE
    header = read_header(weights)
    _check_sizes(weights, header, config)
    with NoInit():
        text = TextModule(config)
        # transformers, which has these towers, takes seconds to import: a text query goes without.
        vision = None if isinstance(config.vision, TowerShape) else VisionModule(config)
    _check(weights, header, config, vision=vision, text=text)
    images = PixelTower(
        lambda: _load_vision(weights, header, config, dtype=kind, device=place),
        preprocess=config.preprocessing,
        device=place,
        dtype=kind,
    )
    texts = FolderTextTower(
        lambda: _filled(text, _read(weights, text, config, dtype=kind), device=place),
        reader=lambda: open_reader(folder, config.text_rules, config=config.text, name=config.name),
        device=place,
        dtype=kind,
    )
    parameters = sum(spec.size for name, spec in header.items() if not _is_scale(name, header))
    return DualEncoder(
        images,
        texts,
        describe=lambda: _describe(folder, config, capacity=texts.reader.capacity, parameters=parameters),
        source=folder,
    )


def _check_sizes(weights: Path, header: Mapping[str, TensorSpec], config: Llm2ClipConfig) -> None:
    """Refuse sizes that the file cannot have before memory is taken for them."""
    held = sum(spec.size for spec in header.values())
    large = {part: size for part, size in config.largest.items() if size > held}
    if large or config.depth > len(header):
        said = ", ".join(f"{part} has a matrix of {size:,} numbers" for part, size in large.items())
        raise ModelError(
            f"{weights} does not fit its config.json: it holds {held:,} numbers in {len(header):,} tensors, but "
            f"{said or f'there are {config.depth:,} blocks'}"
        )


def _check(
    weights: Path,
    header: Mapping[str, TensorSpec],
    config: Llm2ClipConfig,
    *,
    vision: nn.Module | None,
    text: nn.Module,
) -> None:
    """Compare the file with the modules; a vision tower that is not built yet is compared when it is loaded."""
    others = {name: spec for name, spec in header.items() if vision or not name.startswith(_IMAGES)}
    shapes = (_shapes(vision) if vision is not None else {}) | _shapes(text)
    expected = _expected(shapes, config.dtype) | {LOGIT_SCALE: TensorSpec((), "F32")}
    check_tensors(others, expected, path=weights)


def _load_vision(
    weights: Path,
    header: Mapping[str, TensorSpec],
    config: Llm2ClipConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> VisionModule:
    with NoInit():
        module = VisionModule(config)
    mine = {name: spec for name, spec in header.items() if name.startswith(_IMAGES)}
    check_tensors(mine, _expected(_shapes(module), config.dtype), path=weights)
    return _filled(module, _read(weights, module, config, dtype=dtype), device=device)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _expected(shapes: Mapping[str, tuple[int, ...]], dtype: StoredDtype) -> dict[str, TensorSpec]:
    """Tensors of these shapes as they are stored."""
    if dtype == "int8":
        return stored_specs(shapes)
    return {name: TensorSpec(shape, DTYPES[dtype]) for name, shape in shapes.items()}


def _is_scale(name: str, header: Mapping[str, TensorSpec]) -> bool:
    return name.endswith(SCALE) and name.removesuffix(SCALE) in header


def _read(
    weights: Path, module: nn.Module, config: Llm2ClipConfig, *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of a module, in the dtype it computes in."""
    shapes = _shapes(module)
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
