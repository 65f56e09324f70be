"""The weights of a model as the Hugging Face hub lays them out, read strictly and one side at a time.

One ``model.safetensors``, several with an index, or a ``pytorch_model.bin`` of before safetensors, which is
converted once. No code in any of them runs.
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
from llm2clip.common.paths import models_home
from llm2clip.encoders.core.config_io import read_object
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.path_safety import refuse_outside
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
    """Which tensors of a file belong to one side of a model."""

    prefixes: tuple[str, ...]
    """How their names begin."""
    others: tuple[str, ...]
    """How the names of the other side begin; a tensor of neither is an error."""
    unused: re.Pattern[str]
    """Names of tensors that neither side needs."""
    spellings: tuple[tuple[str, str], ...] = ()
    """Parts of names: of the module's tensors, and how a file may have them instead."""


@final
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
        refuse_outside(self.path)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, in the order of their names; made now if there is only an older file."""
        if self.path.name == PICKLED:
            return (convert(self.path),)
        if self.path.name != INDEX:
            return (self.path,)
        index = read_object(self.path).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise ModelError(f"{self.path}: expected a weight_map from names of tensors to files")
        names = sorted(set(index.values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise ModelError(f"{self.path} names files outside its folder: {', '.join(strange)}")
        if absent := [name for name in names if not (self.path.parent / name).is_file()]:
            raise ModelError(f"{self.path} names files that are not there: {', '.join(absent)}")
        paths = tuple(self.path.parent / name for name in names)
        for path in paths:
            refuse_outside(path)
        return paths

    @cached_property
    def header(self) -> dict[str, tuple[TensorSpec, Path]]:
        """Every tensor with the file it is in."""
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
        """SHA-256 in hexadecimal of the published file; of several files, of their hashes one after another."""
        if self.path.name == PICKLED:
            return read_conversion(self.files[0]).sha256
        hashes = [stored_sha256(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def size(self, prefixes: tuple[str, ...]) -> int:
        """How many numbers there are under names that begin so."""
        return sum(spec.size for name, (spec, _) in self.header.items() if name.startswith(prefixes))

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
    """SHA-256 of a file in hexadecimal; known without reading it where the hub's cache has stored it."""
    # The cache links to files that are called by their SHA-256.
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    return file_sha256(path)
