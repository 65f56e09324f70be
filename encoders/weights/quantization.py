"""Quantise language models to eight or four bits per weight, with torchao (``pip install torchao``).

Only the matrices of the blocks are quantised, each as soon as it has been read; the computation stays in floating
point. int8 has one scale for each row of a matrix, int4 one scale and one zero point for each 128 weights of a row.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.encoders.catalog.entries import INT4_GROUP, Choice
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.layers.transformers_modules import has_torchao, import_quietly

if TYPE_CHECKING:
    from collections.abc import Callable

QUANTISED: frozenset[Choice] = frozenset({"int8", "int4"})
"""Precisions that need torchao."""
_GROUPS = (INT4_GROUP, 64, 32)
"""Group sizes for one scale: the largest that divides the length of a row is used."""
_ROWS = 64
"""Rows that are quantised together on a CPU are a multiple of this."""
_SLAB = 1 << 18
"""About how many weights are quantised at once."""


class SmallTable(nn.Module):
    """A token table stored in one dtype and read in another."""

    def __init__(self, table: nn.Embedding, *, dtype: torch.dtype) -> None:
        """Take over the weight of ``table``; rows are given as ``dtype``."""
        super().__init__()
        self.weight = table.weight
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Shape: (...), int64 -> (..., width)."""
        return F.embedding(ids, self.weight).to(self.dtype)


def weight_quantizer(choice: Choice, device: torch.device) -> Callable[[nn.Linear], None]:
    """A function that quantises the weight of a linear layer in place."""
    if not has_torchao():
        raise ModelError(f"{choice} needs torchao, which is not installed: pip install torchao")
    import_quietly()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecations, at import
            quantise, make = _torchao(choice, device)
    except ImportError as error:
        raise ModelError(
            f"{choice} on {device.type} needs another torchao (0.18 is tested): {error}"
        ) from error

    # Packed for a GPU, the rows of int4 do not lie one below the other.
    by_slabs = choice == "int8" or device.type == "cpu"

    def round_weight(linear: nn.Linear) -> None:
        group = next((size for size in _GROUPS if linear.in_features % size == 0), 0)
        if choice == "int8" or group:
            rows = (
                max(_ROWS, _SLAB // linear.in_features // _ROWS * _ROWS) if by_slabs else linear.out_features
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pieces = [_rounded(rows_of, quantise, make(group)) for rows_of in linear.weight.split(rows)]
                whole = _joined(pieces, tuple(linear.weight.shape)) if len(pieces) > 1 else pieces[0]
            linear.weight = nn.Parameter(whole, requires_grad=False)

    return round_weight


def _rounded(weight: Tensor, quantise: Callable[[nn.Module, Any], object], config: Any) -> Tensor:  # noqa: ANN401
    """Some rows of a matrix, quantised. Quantising takes several times the memory of its input."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    quantise(linear, config)
    return linear.weight.detach()


def _joined(pieces: list[Any], shape: tuple[int, ...]) -> Tensor:
    """Quantised rows joined to one matrix: torchao's tensors cannot be concatenated directly."""
    first, total = pieces[0], pieces[0].shape[0]
    parts = {}
    for name in first.tensor_data_names:
        inner = [getattr(piece, name) for piece in pieces]
        axis = inner[0].shape.index(total)
        parts[name] = torch.cat(inner, dim=axis)
    values = {name: getattr(first, name) for name in first.tensor_attribute_names}
    if "shape" in values:
        values["shape"] = torch.Size(shape)
    whole: Tensor = type(first)(**parts, **values)
    return whole


def _torchao(choice: Choice, device: torch.device) -> tuple[Any, Callable[[int], Any]]:
    from torchao.quantization import quantize_

    # Settings of a compiler that is not used here are left alone.
    quiet = {"set_inductor_config": False}
    if choice == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return quantize_, lambda _: Int8WeightOnlyConfig(**quiet)
    if device.type == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return quantize_, lambda group: PrototypeInt4WeightOnlyConfig(group_size=group, **quiet)
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    packing = Int4PackingFormat.TILE_PACKED_TO_4D
    return quantize_, lambda group: Int4WeightOnlyConfig(
        group_size=group, int4_packing_format=packing, **quiet
    )
