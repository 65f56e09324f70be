"""Read and write ``model.safetensors`` strictly: every name, shape, dtype and byte is accounted for.

The header is read without torch; tensors are read one module at a time, so that one side of a model never
costs the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2clip.encoders.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""Names of dtypes as torch and a configuration have them -> as a safetensors header has them."""

_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor must be, or what a file says it is."""

    shape: tuple[int, ...]
    """Length of each axis."""
    dtype: str
    """As in a safetensors header: ``"F16"``, ``"F32"``, ..."""

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorSpec]:
    """What a safetensors file holds, by name.

    Raises:
        ModelError: The file is missing, shorter or longer than its header says, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(min(length, _MAX_HEADER))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if size < 8 or (len(header) < length and length <= _MAX_HEADER):
        raise ModelError(
            f"{path} is truncated: {size} bytes, less than its own header; copy or download it again"
        )
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        specs = {name: TensorSpec(tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ModelError(f"{path} is not a safetensors file (its header cannot be parsed)") from error
    if size != end:
        state = "is truncated" if size < end else "has bytes too many"
        raise ModelError(f"{path} {state}: {size:,} bytes, expected {end:,}; copy or download it again")
    return specs


def check_tensors(found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec], *, path: Path) -> None:
    """Compare what a file holds with what the model needs.

    Raises:
        ModelError: A tensor is missing, unexpected, or of another shape or dtype; the message names it and
        the file.
    """
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing tensors: {_some(missing)}")
    if unexpected := [name for name in found if name not in expected]:
        problems.append(f"unexpected tensors: {_some(unexpected)}")
    wrong = [
        f"{name} is {found[name]}, expected {spec}"
        for name, spec in expected.items()
        if name in found and found[name] != spec
    ]
    if wrong:
        problems.append(f"wrong tensors: {_some(wrong)}")
    if problems:
        raise ModelError(f"{path} does not fit its config.json: {'; '.join(problems)}")


def read_tensors(path: Path, names: Iterable[str], *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, converted to ``dtype``; nothing else in the file is read.

    Raises:
        ModelError: The file or a tensor cannot be read, or a tensor holds values that are not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            # A copy always, never a view of the mapped file: the file may be replaced while the model lives.
            tensors = {name: file.get_tensor(name).to(dtype, copy=True) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    # A sum takes a tenth of the time, and is finite only if every value is; the reverse is not certain.
    broken = [
        name
        for name, tensor in tensors.items()
        if not (bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()))
    ]
    if broken:
        raise ModelError(f"{path} has values that are not finite in: {_some(broken)}")
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file: the same bytes for the same tensors.

    Raises:
        OSError: The file cannot be written.
    """
    from safetensors.torch import save

    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
