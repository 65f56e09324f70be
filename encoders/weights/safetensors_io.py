"""Read and write safetensors strictly, single files and sharded ones: every name, shape and dtype is checked.

The header is read without torch. Tensors are read piece by piece into their final dtype and device, so that loading
takes no more memory than the loaded tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from llm2clip.common.files import file_sha256
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object, refuse_outside, refuse_pointer

if TYPE_CHECKING:
    from io import BufferedReader

    import torch
    from numpy.typing import NDArray
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

SAFETENSORS = "model.safetensors"
"""The usual file of weights."""
PICKLED = "pytorch_model.bin"
"""What older repositories have."""
INDEX = f"{SAFETENSORS}.index.json"
"""Says which tensor is in which of several files."""
_ADAPTERS = ("text_adapter.", "text.text_adaptor.", "text.text_proj.")
"""Prefixes of the tensors of a text adapter."""
_HEADER = 1 << 24
"""Longest header in bytes that is searched for what is damaged."""
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
    """What a safetensors file holds, by name."""
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
        name = _damaged_tensor(path, size)
        reason = " ".join(str(error).split())[:300] + (f"; tensor {name[:200]!r}" if name else "")
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


def _damaged_tensor(path: Path, size: int) -> str:
    """The first tensor that a damaged header is wrong about, or that a truncated file ends in; empty if unclear."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(length)) if length <= min(size, _HEADER) else None
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(entries, dict):
        return ""
    entries.pop("__metadata__", None)
    extents: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        extent = _extent(entry)
        if extent is None:
            return str(name)
        extents.append((*extent, name))
    position = 0
    for begin, end, name in sorted(extents):
        if begin != position or 8 + length + end > size:
            return str(name)
        position = end
    return ""


def _extent(entry: Any) -> tuple[int, int] | None:  # noqa: ANN401
    """Where a tensor begins and ends, as an unchecked header says; None if the entry is invalid."""
    try:
        shape, width, (begin, end) = entry["shape"], STORED[entry["dtype"]][1], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        return None
    if len(numbers) > 10 or not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
        return None
    return (begin, end) if end - begin == width * math.prod(shape) else None


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
    """Compare what a file holds with what the model needs; ``what`` says where that need comes from."""
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
    """Tensors by name, converted to ``dtype``; nothing else in the file is read."""
    return dict(stream_tensors(path, names, dtype=dtype, device=device))


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Arrays by name as they are stored, which must not be bfloat16; loads no torch.

    Raises:
        ModelError: The file cannot be read, lacks one, or has values that are not finite.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: np.array(file.get_tensor(name)) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ModelError(f"{path} has values that are not finite in: {_some(broken)}")
    return arrays


def stream_tensors(
    path: Path, names: Iterable[str], *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors one after the other, each built in its final dtype and device from pieces of the file.

    Nothing stays mapped: mapped pages would count as memory of the process, and the file may be replaced or
    truncated while the model lives.
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


@dataclass(frozen=True, kw_only=True)
class TowerTensors:
    """The tensors that belong to one tower of a model."""

    prefixes: tuple[str, ...]
    """Prefixes of their names."""
    others: tuple[str, ...]
    """Prefixes of the other tower's names; a tensor of neither is an error."""
    unused: re.Pattern[str]
    """Names of tensors that neither tower needs."""
    spellings: tuple[tuple[str, str], ...] = ()
    """Parts of names: in the module, and how a file may spell them instead."""


@final
class Weights:
    """The weights of one model."""

    def __init__(self, folder: Path, *, convert: Callable[[Path], Path] | None = None) -> None:
        """Find them; nothing is read yet."""
        names = (SAFETENSORS, INDEX, PICKLED) if convert else (SAFETENSORS, INDEX)
        found = [name for name in names if (folder / name).is_file()]
        if not found:
            raise ModelError(f"{folder} has no weights: expected {SAFETENSORS} or {names[-1]}")
        self.path = folder / found[0]
        self._convert = convert
        refuse_outside(self.path)

    @cached_property
    def _index(self) -> dict[str, str]:
        """Tensor -> file, as the index of shards says; empty for a single file."""
        if self.path.name != INDEX:
            return {}
        index = read_object(self.path).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise ModelError(f"{self.path} has no weight_map from tensor names to file names")
        names = sorted(set(index.values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise ModelError(f"{self.path} names files outside its folder: {', '.join(strange)}")
        if absent := [name for name in names if not (self.path.parent / name).is_file()]:
            raise ModelError(f"{self.path} names files that are not there: {', '.join(absent)}")
        return index

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, sorted by name; converted now if there is only an older file."""
        if self._convert is not None and self.path.name == PICKLED:
            return (self._convert(self.path),)
        return tuple(self.path.parent / name for name in sorted(set(self._index.values()))) or (self.path,)

    @cached_property
    def header(self) -> dict[str, tuple[TensorSpec, Path]]:
        """Every tensor with the file it is in."""
        index, files = self._index, self.files
        headers = {path: read_header(path) for path in files}
        found = {name: (spec, path) for path, header in headers.items() for name, spec in header.items()}
        if len(found) < sum(map(len, headers.values())):
            name = next(name for path, header in headers.items() for name in header if found[name][1] != path)
            raise ModelError(f"{self.path} has a tensor in two of its files: {name}")
        held = {name: path.name for name, (_, path) in found.items()}
        listed = index or held
        if wrong := sorted(
            name for name in listed.keys() | held.keys() if listed.get(name) != held.get(name)
        ):
            where = f"{listed.get(wrong[0], 'no file')}, found in {held.get(wrong[0], 'no file')}"
            raise ModelError(f"{self.path} does not fit its shards: {wrong[0]} should be in {where}")
        return found

    @cached_property
    def parameters(self) -> int:
        """How many numbers there are."""
        return sum(spec.size for name, (spec, _) in self.header.items() if not name.endswith("position_ids"))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 in hexadecimal of the published file; of several files, of their hashes one after another."""
        if self.path.name == PICKLED:
            return str(
                read_object(self.files[0].with_suffix(".json"))["sha256"]
            )  # the record of the conversion
        hashes = [stored_sha256(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def read(
        self,
        expected: Mapping[str, tuple[int, ...]],
        *,
        tower: TowerTensors,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """The tensors of one tower, strictly: none missing, none too many, every shape right."""
        names = {name: self._in_file(name, tower.spellings) for name in expected}
        found = self._of_tower(tower)
        wanted = {
            names[name]: of_any_float(shape, found.get(names[name])) for name, shape in expected.items()
        }
        check_tensors(found, wanted, path=self.path)
        back = {theirs: ours for ours, theirs in names.items()}
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            here = [name for name in back if self.header[name][1] == path]
            for name, tensor in stream_tensors(path, here, dtype=dtype, device=device):
                tensors[back[name]] = tensor
        return tensors

    def _of_tower(self, tower: TowerTensors) -> dict[str, TensorSpec]:
        known = (*tower.prefixes, *tower.others)
        return {
            name: spec
            for name, (spec, _) in self.header.items()
            if name.startswith(tower.prefixes) or not name.startswith(known)
            if not tower.unused.fullmatch(name)
        }

    def _in_file(self, name: str, spellings: Sequence[tuple[str, str]]) -> str:
        for ours, theirs in spellings:
            other = name.replace(ours, theirs, 1)
            if name not in self.header and other in self.header:
                return other
        return name


def stored_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; in the hub's cache it is read from the file's name."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    return file_sha256(path)


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
