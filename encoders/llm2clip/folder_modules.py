"""The two towers of an encoder folder as torch modules, read strictly from its weights file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from llm2clip.encoders.core.dual_encoder import NO_GRID
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.layers.configs import AdapterConfig
from llm2clip.encoders.layers.efficientnet_lite import LiteTower
from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.llm2clip.folder_config import SCALE, FolderWeights, HeadConfig, Llm2ClipConfig
from llm2clip.encoders.text.packed import build_language
from llm2clip.encoders.vision.tower_detection import TowerShape
from llm2clip.encoders.vision.vision_tower import build_tower
from llm2clip.encoders.weights.safetensors_io import read_tensors

Module = TypeVar("Module", bound=nn.Module)
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

    def cells(self, pixels_B3SS: Tensor) -> Tensor:
        """A vector of each cell of the tower's grid. Shape: (B, 3, S, S) -> (B, G, G, dim), not normalised.

        Raises:
            ModelError: The tower has no grid whose cells could be read alone.
        """
        if not isinstance(self.vision, LiteTower):
            raise ModelError(NO_GRID)
        vectors: Tensor = self.visual_projection(self.vision.cells(pixels_B3SS))
        return vectors


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


def load_module(
    weights: FolderWeights,
    make: Callable[[Llm2ClipConfig], Module],
    *,
    prefixes: tuple[str, ...],
    device: str,
    dtype: str,
) -> Module:
    """The module of one tower with its weights, for inference; every tensor is compared with it."""
    with NoInit():
        module = make(weights.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    expected = weights.check(shapes, prefixes=prefixes)
    kind: torch.dtype = getattr(torch, dtype)
    whole = weights.config.dtype == "int8"
    tensors = read_tensors(weights.path, expected, dtype=torch.float32 if whole else kind)
    if whole:
        tensors = {name: tensor.to(kind) for name, tensor in unpack_int8(tensors).items()}
    for name, tensor in tensors.items():
        if tensor.ndim == 4:
            tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False).eval().to(device)


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
