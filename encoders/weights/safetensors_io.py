"""Read and write safetensors strictly: every name, shape and dtype is checked.

The header is read without torch. Tensors are read piece by piece into their final dtype and device, so that loading
takes no more memory than the loaded tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import refuse_outside, refuse_pointer

if TYPE_CHECKING:
    from io import BufferedReader

    import torch
    from torch import Tensor

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""Names of dtypes as torch and a configuration have them -> as a safetensors header has them."""

STORED = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Dtypes of a safetensors header that are read -> as torch has them, and bytes of one value."""

_ADAPTERS = ("text_adapter.", "text.text_adaptor.", "text.text_proj.")
"""Prefixes of the tensors of a text adapter."""
_PIECE = 1 << 23
"""Bytes read at once; a multiple of every width above."""


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


@dataclass(frozen=True)
class _Place:
    spec: TensorSpec
    start: int
    """Position of the first byte in the file."""
    length: int
    """Number of bytes."""


def read_header(path: Path) -> dict[str, TensorSpec]:
    """What a safetensors file holds, by name.

    Raises:
        ModelError: The file is missing, a link that leads out of its folder, truncated, or no valid safetensors file.
    """
    return {name: place.spec for name, place in _places(path).items()}


def _places(path: Path) -> dict[str, _Place]:
    refuse_outside(path)
    from safetensors import SafetensorError, safe_open

    size = 0
    try:
        refuse_pointer(path)
        size = path.stat().st_size
        # The library checks that the header is valid and that the tensors cover the file without gap or overlap.
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(length))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{path} is truncated, damaged or no safetensors file ({size:,} bytes; {reason}); copy or download it again"
        ) from error
    entries.pop("__metadata__", None)
    places = {}
    for name, entry in entries.items():
        spec, (begin, end) = TensorSpec(tuple(entry["shape"]), entry["dtype"]), entry["data_offsets"]
        if spec.dtype not in STORED:
            raise ModelError(f"{path}: {name} is {spec}, a dtype that is not supported")
        places[name] = _Place(spec, 8 + length + begin, end - begin)
    return places


def has_adapter(path: Path) -> bool:
    """Whether a safetensors file holds a text adapter as LLM2CLIP publishes it.

    Folders of our own format hold one too, but with the language model in the same file.
    """
    names = read_header(path)
    return any(name.startswith(_ADAPTERS) for name in names) and not any(
        name.startswith("language_model.") for name in names
    )


def of_any_float(shape: tuple[int, ...], found: TensorSpec | None) -> TensorSpec:
    """A tensor of this shape as it is in a file, if its dtype is one that weights are stored in, else as float32."""
    stored = found.dtype if found is not None and found.dtype in DTYPES.values() else "F32"
    return TensorSpec(shape, stored)


def check_tensors(
    found: Mapping[str, TensorSpec],
    expected: Mapping[str, TensorSpec],
    *,
    path: Path,
    what: str = "its config.json",
) -> None:
    """Compare what a file holds with what the model needs; ``what`` says where that need comes from.

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
        raise ModelError(f"{path} does not fit {what}: {'; '.join(problems)}")


def read_tensors(
    path: Path, names: Iterable[str], *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Tensors by name, converted to ``dtype``; nothing else in the file is read.

    Raises:
        ModelError: The file or a tensor cannot be read, or a tensor holds values that are not finite.
    """
    return dict(stream_tensors(path, names, dtype=dtype, device=device))


def stream_tensors(
    path: Path, names: Iterable[str], *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors one after the other, each built in its final dtype and device from pieces of the file.

    Nothing stays mapped: mapped pages would count as memory of the process, and the file may be replaced or
    truncated while the model lives.

    Raises:
        ModelError: As ``read_tensors``; values that are not finite only after the last tensor, all of them named.
    """
    import torch

    places = _places(path)
    broken = []
    # One for all: freed and made anew between tensors that stay, it would leave holes in the heap.
    piece = torch.empty(_PIECE, dtype=torch.uint8)
    try:
        with path.open("rb") as stream:
            for name in names:
                if name not in places:
                    raise ModelError(f"{path} has no tensor {name}")
                tensor = torch.empty(places[name].spec.shape, dtype=dtype, device=device)
                _read(stream, places[name], name=name, path=path, into=(tensor, piece))
                # A sum takes a tenth of the time, and is finite only if every value is; the reverse is not certain.
                if not (bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())):
                    broken.append(name)
                yield name, tensor
                del tensor  # the caller may have quantised it: do not hold it while the next one is made
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if broken:
        raise ModelError(f"{path} has values that are not finite in: {_some(broken)}")


def _read(
    stream: BufferedReader,
    place: _Place,
    *,
    name: str,
    path: Path,
    into: tuple[Tensor, Tensor],
) -> None:
    """Fill a tensor by way of a piece of memory."""
    import torch

    stored = getattr(torch, STORED[place.spec.dtype][0])
    tensor, piece = into
    flat = tensor.view(-1)
    stream.seek(place.start)
    done = 0
    while done < place.length:
        raw = piece[: place.length - done]
        if stream.readinto(raw.numpy().data) != len(raw):
            raise ModelError(f"{path} is truncated: {name} ends before its {place.length:,} bytes")
        values = raw.view(stored)
        first = done // values.element_size()
        flat[first : first + len(values)].copy_(values)
        done += len(raw)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file: the same bytes for the same tensors.

    Raises:
        OSError: The file cannot be written.
    """
    from safetensors.torch import save

    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
