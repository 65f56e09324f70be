"""The files of a CLIP checkpoint as the Hugging Face hub lays it out: fetched, checked, read without transformers."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm2clip.encoders.errors import ModelError
from llm2clip.encoders.identity import settings_sha256
from llm2clip.encoders.preprocess import Preprocess, Resample, ResizeMode
from llm2clip.encoders.strict import from_json
from llm2clip.encoders.tensors import (
    DTYPES,
    TensorSpec,
    check_tensors,
    file_sha256,
    read_header,
    read_tensors,
)

TEXT = ("text_model.", "text_projection.")
"""How the names of the text side's tensors begin."""
VISION = ("vision_model.", "visual_projection.")
"""How the names of the vision side's tensors begin."""

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, the preferred one first; the second is read with ``weights_only``, so no code in it runs."""
_SETTINGS = ("config.json", "preprocessor_config.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)
_NO_WEIGHTS = re.compile(r"logit_scale|(text|vision)_model\.embeddings\.position_ids")
"""Tensors of a checkpoint that neither side needs: the scale of the loss, and counters old releases stored."""
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_FILTERS = {1: Resample.LANCZOS, 2: Resample.BILINEAR, 3: Resample.BICUBIC}
"""Pillow's numbers, as ``preprocessor_config.json`` has them."""
_FOR_PEOPLE = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""Entries of ``config.json`` that say where a model came from, not what it computes."""
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def fetch(repository: str, *, name: str) -> Path:
    """The folder of a repository in the hub's cache, downloaded if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    files = [*_SETTINGS, *_TOKENIZER]
    reason = "download incomplete"
    # What is cached first, without asking the hub; then the hub, and its older file format only if need be.
    for weights, cached in ((list(_WEIGHTS), True), ([_WEIGHTS[0]], False), ([_WEIGHTS[1]], False)):
        try:
            folder = Path(
                snapshot_download(repository, allow_patterns=[*files, *weights], local_files_only=cached)
            )
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            continue
        if any((folder / file).exists() for file in _WEIGHTS) and (folder / "config.json").exists():
            return folder
    raise ModelError(
        f"{name} is not on this machine (looked in {HF_HUB_CACHE}) and could not be downloaded: {reason}. "
        f"Where there is internet, run: hf download {repository} --local-dir {name}; "
        f"then copy the folder here and give its path as the encoder, for example ./{name}"
    )


def find_weights(folder: Path) -> Path:
    """The file of weights in a folder; ``ModelError`` if there is none."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder} has no weights: expected {' or '.join(_WEIGHTS)}")


def check_tokenizer(folder: Path) -> None:
    """Raise ``ModelError`` where the tokenizer's files are missing: transformers would make an empty one up."""
    present = {name for name in _TOKENIZER if (folder / name).is_file()}
    if "tokenizer.json" not in present and not {"vocab.json", "merges.txt"} <= present:
        raise ModelError(f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt")


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


def read_preprocess(folder: Path, config: Mapping[str, Any]) -> Preprocess:
    """What ``preprocessor_config.json`` asks for; CLIP's own ways where it says nothing.

    Raises:
        ModelError: It asks for something that this library does not do; the message names it.
    """
    size = config.get("vision_config", {}).get("image_size", 224)
    path = folder / "preprocessor_config.json"
    settings: dict[str, Any] = read_json(path) if path.is_file() else {}
    expected: dict[str, tuple[object, ...]] = {
        "size": (size, {"shortest_edge": size}),
        "crop_size": (size, {"height": size, "width": size}),
        "resample": tuple(_FILTERS),
        "rescale_factor": (1 / 255,),
        **dict.fromkeys(_STEPS, (True,)),
    }
    for key, allowed in expected.items():
        if key in settings and settings[key] not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise ModelError(f"{path}: unsupported {key}: {settings[key]!r}, expected {choices}")
    data = {
        "size": size,
        "mode": ResizeMode.SHORTEST_CROP,
        "resample": _FILTERS[settings.get("resample", 3)],
        "mean": settings.get("image_mean", _MEAN),
        "std": settings.get("image_std", _STD),
    }
    return from_json(Preprocess, data, where=str(path))


def read_side(
    path: Path, expected: Mapping[str, tuple[int, ...]], *, prefixes: tuple[str, ...], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of one side, strictly: none missing, none too many, every shape right."""
    pickled = _read_pickle(path) if path.suffix == ".bin" else None
    found = read_header(path) if pickled is None else _specs(pickled)
    known = (*TEXT, *VISION)
    side = {
        name: spec
        for name, spec in found.items()
        if name.startswith(prefixes) or not name.startswith(known)
        if not _NO_WEIGHTS.fullmatch(name)
    }
    # Any of the floating dtypes will do; others are reported against the one most files have.
    wanted = {
        name: TensorSpec(
            shape, side[name].dtype if name in side and side[name].dtype in DTYPES.values() else "F32"
        )
        for name, shape in expected.items()
    }
    check_tensors(side, wanted, path=path)
    if pickled is None:
        return read_tensors(path, expected, dtype=dtype)
    return {name: pickled[name].to(dtype) for name in expected}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # Files of before 2020 are no zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise ModelError(f"{path} is damaged or holds more than tensors: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} is not a state dict: expected tensors by name")
    return state


def _specs(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    names = {getattr(torch, ours): theirs for ours, theirs in DTYPES.items()}
    return {
        name: TensorSpec(tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype)))
        for name, tensor in tensors.items()
    }


def count_weights(path: Path) -> int:
    """Number of weights in a file."""
    specs = _specs(_read_pickle(path)) if path.suffix == ".bin" else read_header(path)
    return sum(spec.size for name, spec in specs.items() if not name.endswith("position_ids"))


def weights_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; known without reading it where the hub's cache has stored it."""
    # The cache links to files that are called by their SHA-256.
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    return file_sha256(path)


def settings_hash(folder: Path, config: Mapping[str, Any]) -> str:
    """SHA-256 of what shapes the vectors besides weights and preprocessing: ``config.json`` and the tokenizer."""
    present = [folder / name for name in _TOKENIZER if (folder / name).is_file()]
    return settings_sha256(_without_origin(config), files=present)


def _without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_origin(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _FOR_PEOPLE
    }
