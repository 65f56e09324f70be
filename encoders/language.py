"""Read a published language model: a folder with ``config.json`` and safetensors, whole or in shards."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from llm2clip.encoders.errors import ModelError
from llm2clip.encoders.llama import BidirectionalLlama, LlamaConfig
from llm2clip.encoders.tensors import DTYPES, TensorSpec, check_tensors, read_header, read_tensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PREFIX = "model."
_UNUSED_HEAD = "lm_head.weight"
_UNUSED_TABLE = ".rotary_emb.inv_freq"


def load_language_model(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> BidirectionalLlama:
    """Load a Llama of the published layout as a bidirectional encoder, on the CPU and without gradients.

    Tensor names may begin with ``model.`` or not. A language-model head and stored rotary tables (older
    checkpoints) are left out; any other tensor that the model does not have is an error.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``, or shards with their index.
        dtype: Of the loaded weights, whatever they are stored as.

    Raises:
        ModelError: A file is missing or damaged, the architecture is another one, or a tensor is missing,
            unexpected or of another shape.
    """
    folder = Path(folder)
    try:
        config = LlamaConfig.from_hf(_read_object(folder / "config.json"))
    except (KeyError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{folder / 'config.json'} is no Llama that can be read: {reason}") from error
    with torch.device("meta"):
        model = BidirectionalLlama(config)
    places = _places(folder)
    found = {ours: spec for ours, (_, _, spec) in places.items()}
    expected = {
        name: TensorSpec(tuple(tensor.shape), _float_kind(found.get(name)))
        for name, tensor in model.state_dict().items()
    }
    check_tensors(found, expected, path=folder)
    names: dict[Path, dict[str, str]] = defaultdict(dict)
    for ours, (path, theirs, _) in places.items():
        names[path][theirs] = ours
    weights = {
        renamed[theirs]: tensor
        for path, renamed in names.items()
        for theirs, tensor in read_tensors(path, renamed, dtype=dtype).items()
    }
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def _places(folder: Path) -> dict[str, tuple[Path, str, TensorSpec]]:
    """File, name there and kind of every tensor that is used, by our name."""
    if (folder / WEIGHTS).is_file():
        headers = {folder / WEIGHTS: read_header(folder / WEIGHTS)}
    elif (folder / INDEX).is_file():
        headers = _sharded(folder)
    else:
        raise ModelError(f"{folder} has neither {WEIGHTS} nor {INDEX}: is it the folder of a language model?")
    places: dict[str, tuple[Path, str, TensorSpec]] = {}
    for path, header in headers.items():
        for name, spec in header.items():
            if name == _UNUSED_HEAD or name.endswith(_UNUSED_TABLE):
                continue
            ours = name.removeprefix(_PREFIX)
            if ours in places:
                raise ModelError(f"{folder} holds {ours} twice: in {places[ours][0].name} and in {path.name}")
            places[ours] = (path, name, spec)
    return places


def _sharded(folder: Path) -> dict[Path, dict[str, TensorSpec]]:
    """Headers of the shards, which together hold exactly what the index says where it says so."""
    listed = _read_object(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(f"{folder / INDEX} has no weight_map from tensor names to file names")
    files = sorted(set(listed.values()))
    if outside := [name for name in files if Path(name).name != name]:
        raise ModelError(f"{folder / INDEX} names files outside its folder: {outside}")
    headers = {folder / name: read_header(folder / name) for name in files}
    held = {tensor: path.name for path, header in headers.items() for tensor in header}
    if wrong := sorted(name for name in listed.keys() | held.keys() if listed.get(name) != held.get(name)):
        where = f"{listed.get(wrong[0], 'no file')}, found in {held.get(wrong[0], 'no file')}"
        raise ModelError(f"{folder / INDEX} does not fit its shards: {wrong[0]} should be in {where}")
    return headers


def _float_kind(found: TensorSpec | None) -> str:
    """The dtype a tensor has if it may have it; weights come in any of three."""
    return found.dtype if found is not None and found.dtype in DTYPES.values() else "F32"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: expected an object, got {type(data).__name__}")
    return data
