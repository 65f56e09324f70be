"""What a configuration says about a vision tower, and whether the tensors agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.vision.tower_detection import Tower

_SIZES: Final = {
    "": {"projection_dim": "dim", "embed_dim": "dim"},
    "vision_config": {
        "hidden_size": "width",
        "intermediate_size": "hidden",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "image_size": "image_size",
        "patch_size": "patch_size",
    },
    "vision_cfg": {
        "width": "width",
        "layers": "depth",
        "head_width": "head_width",
        "image_size": "image_size",
        "patch_size": "patch_size",
        "pt_hw_seq_len": "rope_grid",
    },
}
"""Section of a configuration (of transformers, of EVA-CLIP and open_clip) -> key there -> field of a tower's shape."""
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
_ON = ("rope", "intp_freq", "naiveswiglu", "subln")
"""Parts of EVA02 that a configuration may name, and that the tower always has."""


@dataclass(frozen=True)
class Claim:
    """One thing that a configuration says."""

    value: int | str
    """What it says."""
    key: str
    """Where it says so."""


def read_claims(settings: Mapping[str, Any], *, where: Path) -> dict[str, Claim]:
    """What a configuration says, by field of a tower's shape (or ``"head_width"``); other keys are left alone.

    Raises:
        ModelError: A value is of another type, not positive, or asks for what no known tower has.
    """
    claims: dict[str, Claim] = {}
    for section, keys in _SIZES.items():
        data = settings.get(section, {}) if section else settings
        if not isinstance(data, Mapping):
            raise ModelError(f"{where}: {section}: expected an object, got {type(data).__name__}")
        for key, name in keys.items():
            if data.get(key) is None:
                continue
            said = f"{section}.{key}" if section else key
            value = data[key]
            if type(value) is not int or value < 1:
                raise ModelError(f"{where}: {said}: expected a positive whole number, got {value!r}")
            claims[name] = Claim(value, said)
    _read_other(settings, claims, where=where)
    return claims


def _read_other(settings: Mapping[str, Any], claims: dict[str, Claim], *, where: Path) -> None:
    activation = settings.get("vision_config", {}).get("hidden_act")
    if activation is not None:
        if activation not in _ACTIVATIONS:
            raise ModelError(
                f"{where}: vision_config.hidden_act: expected one of {list(_ACTIVATIONS)}, got {activation!r}"
            )
        claims["activation"] = Claim(activation, "vision_config.hidden_act")
    eva = settings.get("vision_cfg", {})
    for key in _ON:
        if eva.get(key, True) is not True:
            raise ModelError(f"{where}: vision_cfg.{key}: expected true as in EVA02, got {eva[key]!r}")
    ratio = eva.get("mlp_ratio")
    if ratio is not None and "width" in claims:
        if type(ratio) not in (int, float) or not 0 < ratio < 100:
            raise ModelError(f"{where}: vision_cfg.mlp_ratio: expected a number, got {ratio!r}")
        claims["hidden"] = Claim(int(int(claims["width"].value) * ratio), "width * vision_cfg.mlp_ratio")


def check_claims(claims: Mapping[str, Claim], tower: Tower, *, path: Path, where: Path) -> None:
    """Compare what a configuration says with what the tensors say.

    Raises:
        ModelError: They differ; the message names key, file and tensor.
    """
    for name, claim in claims.items():
        tensor = tower.evidence.get(name)
        actual = getattr(tower.shape, name)
        if tensor is not None and claim.value != actual:
            raise ModelError(
                f"{where} says {claim.key} is {claim.value}, but {tensor} of {path} makes it {actual}; correct it, "
                "or remove it: sizes are read from the tensors"
            )
