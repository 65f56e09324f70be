"""Convert a ``.pt`` or ``.bin`` file to safetensors, once, without running code in it.

Such a file is a pickle, which can call any function when it is read. torch's restricted reader accepts only tensors;
its result is checked again, because a pickle can also describe a tensor that is larger than its bytes.
"""

from __future__ import annotations

import glob
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llm2clip.common.files import atomic_path, file_sha256, models_home, write_atomic
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import from_json, read_object, refuse_outside, refuse_pointer, to_json
from llm2clip.encoders.weights.safetensors_io import STORED

_CODES = {getattr(torch, name): code for code, (name, _) in STORED.items()}
"""Dtype of torch -> as a safetensors header has it."""
_WRAPPERS = ("state_dict", "model", "module")
"""Keys under which training programs put the tensors, beside their step counter and settings."""
_PARALLEL = "module."
"""What data-parallel training puts before every name."""
_SPARE = 1 << 26
"""Bytes that the tensors may take beyond twice the file; a few share their bytes with others."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was made of which file; stored as JSON beside the result."""

    source: str
    """Name of the file that was converted."""
    place: str
    """Its resolved path when it was last read: two files of one name, size and age are not one file."""
    size: int
    """Its size in bytes."""
    modified_ns: int
    """When it was last changed, in nanoseconds; it is hashed again when this differs."""
    sha256: str
    """Its SHA-256, in hexadecimal."""
    result: str
    """Name of the safetensors file."""
    result_size: int
    """Its size in bytes."""
    tensors: int
    """Number of tensors in it."""


def convert_checkpoint(pt: Path, cache: Path, *, sha256: str | None = None) -> Path:
    """The tensors of a ``torch.save`` file as safetensors, converted once and found by hash later.

    They may be bare or under ``state_dict``, ``model`` or ``module``. The result is complete whenever it exists.
    """
    refuse_outside(pt)
    try:
        state = pt.stat()
    except OSError as error:
        raise ModelError(f"{pt} cannot be read: {error.strerror or error}") from error
    wanted = Conversion(
        source=pt.name,
        place=str(pt.resolve()),
        size=state.st_size,
        modified_ns=state.st_mtime_ns,
        sha256="",
        result="",
        result_size=0,
        tensors=0,
    )
    known = next((record for record in _records(pt, cache) if _same_file(record, wanted)), None)
    found = known.sha256 if known else _hash(pt)
    if sha256 is not None and found != sha256:
        raise ModelError(f"{pt} is another file: SHA-256 {found}, expected {sha256}; download it again")
    if known is None:
        known = next((record for record in _records(pt, cache) if record.sha256 == found), None)
        wanted = replace(wanted, sha256=found, result=f"{pt.stem}-{found[:16]}.safetensors")
        known = (
            _convert(pt, cache, wanted)
            if known is None
            else replace(known, place=wanted.place, modified_ns=wanted.modified_ns)
        )
        _write_record(cache, known)
    return cache / known.result


def convert_into_home(path: Path, *, sha256: str | None = None) -> Path:
    """As :func:`convert_checkpoint`, with the result in the data home."""
    return convert_checkpoint(path, models_home() / "converted" / path.parent.name, sha256=sha256)


def read_conversion(result: Path) -> Conversion:
    """What a converted file was made of."""
    path = result.with_suffix(".json")
    return from_json(Conversion, read_object(path), where=str(path))


def _records(pt: Path, cache: Path) -> Iterator[Conversion]:
    """Earlier conversions of files of that name whose results are still whole."""
    for path in sorted(cache.glob(f"{glob.escape(pt.stem)}-*.json")):
        try:
            record = read_conversion(path)
            whole = (cache / record.result).stat().st_size == record.result_size
        except (ModelError, OSError):
            # Half a record, or none of ours: as if it were not there.
            continue
        if whole and record.source == pt.name and Path(record.result).name == record.result:
            yield record


def _same_file(record: Conversion, wanted: Conversion) -> bool:
    return all(getattr(record, key) == getattr(wanted, key) for key in ("place", "size", "modified_ns"))


def _hash(pt: Path) -> str:
    # Of the bytes, also where the hub's cache has a hash for a name: what is converted once is checked once.
    try:
        return file_sha256(pt)
    except OSError as error:
        raise ModelError(f"{pt} cannot be read: {error.strerror or error}") from error


def _convert(pt: Path, cache: Path, wanted: Conversion) -> Conversion:
    tensors = _check(_read(pt), pt=pt, size=wanted.size)
    target = cache / wanted.result
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as draft:
            _write(draft, tensors)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}") from error
    return replace(wanted, result_size=target.stat().st_size, tensors=len(tensors))


def _read(pt: Path) -> dict[str, Tensor]:
    """Tensors by name, mapped rather than read where the file allows."""
    try:
        refuse_pointer(pt)
        zipped = zipfile.is_zipfile(pt)
        if zipped and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(pt).namelist()):
            raise ModelError(f"{pt} is a TorchScript program; expected a file of tensors (a state dict)")
        state = torch.load(pt, map_location="cpu", weights_only=True, mmap=zipped)
    except ModelError:
        raise
    except Exception as error:  # what a file made by anybody lets torch, zipfile and pickle raise has no end
        raise ModelError(
            f"{pt} is damaged or holds more than tensors ({_reason(error)}); nothing in it was run. Expected a bare "
            "state dict: torch.save(model.state_dict(), path)"
        ) from error
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state:
        raise ModelError(f"{pt} is not a state dict: expected tensors by name, got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(
                f"{pt}: {str(name)[:80]!r} is {type(value).__name__}, expected a tensor with a name"
            )
    if all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    return state


def _reason(error: Exception) -> str:
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    return f"it asks for {asked[1]}" if asked else (text.strip().split("\n")[0] or type(error).__name__)[:160]


def _check(state: Mapping[str, Tensor], *, pt: Path, size: int) -> dict[str, Tensor]:
    total = 0
    for name, tensor in state.items():
        if name == "__metadata__" or not name.isprintable() or "" in name.split("."):
            raise ModelError(f"{pt}: {name[:80]!r} cannot be the name of a tensor")
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _CODES:
            kind = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}"
            raise ModelError(f"{pt}: {name} is no plain tensor ({kind}); expected one of {list(STORED)}")
        held, claimed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
        total += claimed
        if claimed > held or total > 2 * size + _SPARE:
            raise ModelError(
                f"{pt}: {name} claims {claimed:,} bytes (shape {list(tensor.shape)}), more than the file holds for it"
            )
    return dict(state)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors. Tensors that share memory in the pickle are written one by one."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        part = tensor.detach().contiguous()
        memory = part.untyped_storage().data_ptr()
        plain[name] = part.clone() if memory in seen else part
        seen.add(memory)
    save_file(plain, path, metadata={"format": "pt"})


def _write_record(cache: Path, record: Conversion) -> None:
    path = (cache / record.result).with_suffix(".json")
    try:
        write_atomic(path, json.dumps(to_json(record), indent=2) + "\n")
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror or error}") from error
