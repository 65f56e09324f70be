"""The weights of a model as the Hugging Face hub lays them out, read strictly and one side at a time.

One ``model.safetensors``, several with an index, or a ``pytorch_model.bin`` of before safetensors. No code in any
of them runs.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm2clip.encoders.errors import ModelError
from llm2clip.encoders.hub import PICKLED, SAFETENSORS
from llm2clip.encoders.tensors import (
    DTYPES,
    TensorSpec,
    check_tensors,
    file_sha256,
    read_header,
    stream_tensors,
)

INDEX = f"{SAFETENSORS}.index.json"
"""Says which tensor is in which of several files."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """Which tensors of a file belong to one side of a model."""

    prefixes: tuple[str, ...]
    """How their names begin."""
    others: tuple[str, ...]
    """How the names of the other side begin; a tensor of neither is an error."""
    unused: re.Pattern[str]
    """Names of tensors that neither side needs."""
    spellings: tuple[tuple[str, str], ...] = ()
    """Parts of names: of the module's tensors, and how a file may have them instead."""


class Weights:
    """The weights of one model."""

    def __init__(self, folder: Path) -> None:
        """Find them; nothing is read yet.

        Raises:
            ModelError: There are none.
        """
        found = [name for name in (SAFETENSORS, INDEX, PICKLED) if (folder / name).is_file()]
        if not found:
            raise ModelError(f"{folder} has no weights: expected {SAFETENSORS} or {PICKLED}")
        self.path = folder / found[0]
        self._pickled = self.path.name == PICKLED

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files of tensors, in the order of their names."""
        if self.path.name != INDEX:
            return (self.path,)
        index = read_json(self.path).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise ModelError(f"{self.path}: expected a weight_map from names of tensors to files")
        names = sorted(set(index.values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise ModelError(f"{self.path} names files outside its folder: {', '.join(strange)}")
        if absent := [name for name in names if not (self.path.parent / name).is_file()]:
            raise ModelError(f"{self.path} names files that are not there: {', '.join(absent)}")
        return tuple(self.path.parent / name for name in names)

    @cached_property
    def header(self) -> dict[str, tuple[TensorSpec, Path]]:
        """Every tensor with the file it is in."""
        if self._pickled:
            state = read_pickle(self.path)
            return {name: (spec, self.path) for name, spec in tensor_specs(state).items()}
        found: dict[str, tuple[TensorSpec, Path]] = {}
        for path in self.files:
            for name, spec in read_header(path).items():
                if name in found:
                    raise ModelError(f"{path} has a tensor that {found[name][1].name} has too: {name}")
                found[name] = (spec, path)
        return found

    @cached_property
    def parameters(self) -> int:
        """How many numbers there are."""
        return sum(spec.size for name, (spec, _) in self.header.items() if not name.endswith("position_ids"))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 in hexadecimal of the file; of several files, of their hashes one after another."""
        hashes = [stored_sha256(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def read(
        self,
        expected: Mapping[str, tuple[int, ...]],
        *,
        side: Side,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """The tensors of one side, strictly: none missing, none too many, every shape right.

        Args:
            expected: Shapes by the names of the module.
            side: Which tensors they are.
            dtype: Of what is returned, whatever floating dtype the file has.
            device: Where to.

        Raises:
            ModelError: The file does not fit, is damaged, or has values that are not finite.
        """
        names = {name: self._in_file(name, side.spellings) for name in expected}
        found = self._of_side(side)
        floating = tuple(DTYPES.values())
        # Any of the floating dtypes will do; others are reported against the one most files have.
        wanted = {
            names[name]: TensorSpec(
                shape,
                found[names[name]].dtype
                if names[name] in found and found[names[name]].dtype in floating
                else "F32",
            )
            for name, shape in expected.items()
        }
        check_tensors(found, wanted, path=self.path)
        back = {theirs: ours for ours, theirs in names.items()}
        if self._pickled:
            return self._from_pickle(back, dtype=dtype, device=device)
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            here = [name for name in back if self.header[name][1] == path]
            for name, tensor in stream_tensors(path, here, dtype=dtype, device=device):
                tensors[back[name]] = tensor
        return tensors

    def _of_side(self, side: Side) -> dict[str, TensorSpec]:
        known = (*side.prefixes, *side.others)
        return {
            name: spec
            for name, (spec, _) in self.header.items()
            if name.startswith(side.prefixes) or not name.startswith(known)
            if not side.unused.fullmatch(name)
        }

    def _in_file(self, name: str, spellings: Sequence[tuple[str, str]]) -> str:
        for ours, theirs in spellings:
            other = name.replace(ours, theirs, 1)
            if name not in self.header and other in self.header:
                return other
        return name

    def _from_pickle(
        self, names: Mapping[str, str], *, dtype: torch.dtype, device: torch.device | str
    ) -> dict[str, Tensor]:
        state = read_pickle(self.path)
        tensors = {ours: state[theirs].to(device, dtype, copy=True) for theirs, ours in names.items()}
        if broken := [name for name, ours in names.items() if not bool(tensors[ours].isfinite().all())]:
            raise ModelError(f"{self.path} has values that are not finite in: {', '.join(broken[:5])}")
        return tensors


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; ``ModelError`` if it cannot be read or is something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: expected an object, got {type(data).__name__}")
    return data


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a file that ``torch.save`` wrote; nothing but tensors is accepted.

    Raises:
        ModelError: It is damaged, or holds more than tensors.
    """
    try:
        # Files of before 2020 are no zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise ModelError(f"{path} is damaged or holds more than tensors: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} is not a state dict: expected tensors by name")
    return state


def tensor_specs(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """Shapes and dtypes, as a safetensors header has them."""
    names = {getattr(torch, ours): theirs for ours, theirs in DTYPES.items()}
    return {
        name: TensorSpec(tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype)))
        for name, tensor in tensors.items()
    }


def stored_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; known without reading it where the hub's cache has stored it."""
    # The cache links to files that are called by their SHA-256.
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    return file_sha256(path)
