"""The weights of a model folder as the Hugging Face hub lays it out, read strictly and one tower at a time.

One ``model.safetensors``, shards with an index, or an older ``pytorch_model.bin``, which is converted once. No code
in any of them runs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from llm2clip.common.files import file_sha256
from llm2clip.common.installation import models_home
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object, refuse_outside
from llm2clip.encoders.weights.pickle_conversion import convert_checkpoint, read_conversion
from llm2clip.encoders.weights.safetensors_io import (
    TensorSpec,
    check_tensors,
    of_any_float,
    read_header,
    stream_tensors,
)

SAFETENSORS = "model.safetensors"
"""The usual file of weights."""
PICKLED = "pytorch_model.bin"
"""What older repositories have."""
INDEX = f"{SAFETENSORS}.index.json"
"""Says which tensor is in which of several files."""


@dataclass(frozen=True, kw_only=True)
class Side:
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

    def __init__(self, folder: Path, *, pickled: bool = True) -> None:
        """Find them; nothing is read yet.

        Args:
            folder: The model's folder.
            pickled: Whether an older ``pytorch_model.bin`` is accepted.

        Raises:
            ModelError: There are none.
        """
        names = (SAFETENSORS, INDEX, PICKLED) if pickled else (SAFETENSORS, INDEX)
        found = [name for name in names if (folder / name).is_file()]
        if not found:
            raise ModelError(f"{folder} has no weights: expected {SAFETENSORS} or {names[-1]}")
        self.path = folder / found[0]
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
        if self.path.name == PICKLED:
            return (convert(self.path),)
        return tuple(self.path.parent / name for name in sorted(set(self._index.values()))) or (self.path,)

    @cached_property
    def header(self) -> dict[str, tuple[TensorSpec, Path]]:
        """Every tensor with the file it is in.

        Raises:
            ModelError: A file is damaged, or the index does not agree with its shards.
        """
        headers = {path: read_header(path) for path in self.files}
        found = {name: (spec, path) for path, header in headers.items() for name, spec in header.items()}
        if len(found) < sum(map(len, headers.values())):
            name = next(name for path, header in headers.items() for name in header if found[name][1] != path)
            raise ModelError(f"{self.path} has a tensor in two of its files: {name}")
        held = {name: path.name for name, (_, path) in found.items()}
        listed = self._index or held
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
            return read_conversion(self.files[0]).sha256
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
        """The tensors of one tower, strictly: none missing, none too many, every shape right.

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


def convert(path: Path, *, sha256: str | None = None) -> Path:
    """A ``.pt`` or ``.bin`` as safetensors, made in the data home at the first call; see ``convert_checkpoint``."""
    return convert_checkpoint(path, models_home() / "converted" / path.parent.name, sha256=sha256)


def stored_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; in the hub's cache it is read from the file's name."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    return file_sha256(path)
