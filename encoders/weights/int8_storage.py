"""Weights stored as whole numbers from -127 to 127, with a scale for each row: a quarter of float32.

Matrices and kernels are rounded; vectors, which are few, are stored as float16. Computing stays in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llm2clip.encoders.weights.safetensors_io import TensorSpec

SCALE = ".scale"
"""Ends the name of the scales of a tensor."""
_MOST = 127


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
        scale = rows.abs().amax(1).clamp(min=1e-12) / _MOST
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
