"""A low-rank update (LoRA) in peft's layout, merged into a language model's matrices while they are read.

W becomes W + scale * B @ A in float32, rounded once to the dtype it is loaded as; peft is not needed. A test holds
the result to peft's own merge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object
from llm2clip.encoders.weights.safetensors_io import TensorSpec, read_header, read_tensors

SETTINGS = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_KEY = re.compile(r"(?:base_model\.model\.)?(?:model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_REPEATS = 3
"""Most repeats in a pattern of module names, so that matching stays fast."""
_PIECE = 1 << 18
"""Values of a weight that are updated at once."""
_PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    **dict.fromkeys(("use_dora", "lora_bias", "use_qalora"), (False,)),
    **dict.fromkeys(("modules_to_save", "layer_replication", "trainable_token_indices"), (None, [])),
    **dict.fromkeys(("target_parameters", "alora_invocation_tokens"), (None, [])),
}
"""Settings that change what is computed, with the values under which it is W + scale * B @ A."""


@dataclass(frozen=True)
class LowRankUpdate:
    """What to add to which matrix."""

    folder: Path
    """Where it was read from."""
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """Our name of a weight -> A and scale * B. Shapes: (rank, inputs) and (outputs, rank), float32."""

    def apply(self, name: str, weight: Tensor) -> None:
        """Add the update of a weight in place, a few rows at a time. Shape: (outputs, inputs)."""
        if name not in self.pairs:
            return
        down, up = (part.to(weight.device) for part in self.pairs[name])
        step = max(1, _PIECE // weight.shape[1])
        for start in range(0, len(weight), step):
            rows = weight[start : start + step]
            rows.copy_(torch.addmm(rows.float(), up[start : start + step], down))


def is_lora_folder(folder: Path) -> bool:
    """Whether a folder holds an update rather than a whole model."""
    return (folder / SETTINGS).is_file()


def open_lora(folder: str | Path, *, shapes: Mapping[str, tuple[int, ...]]) -> LowRankUpdate:
    """Read an update and check it against the model that it is for."""
    folder = Path(folder)
    settings = read_object(folder / SETTINGS)
    for key, allowed in _PLAIN.items():
        if key in settings and settings[key] not in allowed:
            raise ModelError(
                f"{folder / SETTINGS}: {key} is {settings[key]!r}, which is not read here (expected "
                f"{' or '.join(map(repr, allowed))}); merge it with peft and save the whole model"
            )
    path = _weights(folder)
    header = read_header(path)
    names = {key: _parse(key, path) for key in header}
    tensors = read_tensors(path, header, dtype=torch.float32)
    found: dict[str, dict[str, Tensor]] = {}
    for key, (module, side) in names.items():
        found.setdefault(f"{module}.weight", {})[side] = tensors[key]
    pairs = {name: _pair(name, sides, shapes, path) for name, sides in found.items()}
    scaled = {
        name: (down, up.mul_(_scale(settings, name.removesuffix(".weight"), len(down), folder)))
        for name, (down, up) in pairs.items()
    }
    if not scaled:
        raise ModelError(f"{path} holds no update")
    return LowRankUpdate(folder, scaled)


def _weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            path = folder / name
            break
    else:
        raise ModelError(f"{folder} has {SETTINGS} but neither {' nor '.join(_WEIGHTS)}")
    if path.suffix == ".safetensors":
        return path
    from llm2clip.encoders.weights.pickle_conversion import convert_into_home

    return convert_into_home(path)


def _parse(key: str, path: Path) -> tuple[str, str]:
    match = _KEY.fullmatch(key)
    if match is None:
        raise ModelError(
            f"{path} holds {key}, which is no part of a plain LoRA (expected ...lora_A.weight or B)"
        )
    return match[1], match[2]


def _pair(
    name: str, sides: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> tuple[Tensor, Tensor]:
    if len(sides) < 2:
        raise ModelError(f"{path}: {name} has lora_{''.join(sides)} alone, expected A and B")
    if name not in shapes:
        raise ModelError(
            f"{path} changes {name}, which the language model does not have; is it for another one?"
        )
    down, up = sides["A"], sides["B"]
    got = (*up.shape[:1], *down.shape[1:])
    if down.ndim != 2 or up.ndim != 2 or not len(down) or up.shape[1] != down.shape[0] or got != shapes[name]:
        said = [str(TensorSpec(tuple(part.shape), "F32")) for part in (down, up)]
        raise ModelError(
            f"{path}: A {said[0]} and B {said[1]} of {name} do not give {list(shapes[name])}; "
            "the update is for a language model of another shape"
        )
    return down, up


def _scale(settings: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """What B @ A is multiplied by: alpha / rank, or alpha / sqrt(rank) where that was asked for."""
    where = folder / SETTINGS
    said = _of_module(settings, "rank_pattern", "r", module, where=where)
    if said is not None and said != rank:
        raise ModelError(f"{where} says rank {said!r} for {module}, its tensors have {rank}")
    alpha = _of_module(settings, "alpha_pattern", "lora_alpha", module, where=where)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise ModelError(f"{where}: lora_alpha is {alpha!r}, expected a number")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_module(settings: Mapping[str, Any], key: str, default: str, module: str, *, where: Path) -> object:
    patterns = settings.get(key) or {}
    if not isinstance(patterns, dict):
        raise ModelError(f"{where}: {key} is {str(patterns)[:40]!r}, expected an object")
    for pattern, value in patterns.items():
        try:
            # Untrusted pattern: refuse those that can backtrack exponentially.
            if "(" in pattern or sum(map(pattern.count, "*+?{")) > _REPEATS:
                raise ValueError("it has groups, or too many repeats")
            found = re.fullmatch(rf"(.*\.)?({pattern})", module)
        except (re.error, ValueError) as error:
            raise ModelError(
                f"{where}: {key} has the pattern {pattern[:40]!r}, which is not read here ({error}); merge it "
                "with peft and save the whole model"
            ) from error
        if found:
            return value
    return settings.get(default)
