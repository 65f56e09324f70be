"""What tower a published file holds, from nothing but the header of its safetensors.

Sizes are read from shapes, because published configurations are incomplete; what shapes do not tell (heads,
activation, grid of the rotary frequencies) comes from a configuration, or is what every published tower has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.vision.tensor_layouts import (
    EVA,
    TIMM,
    TRANSFORMERS,
    Rows,
    Shape,
    TowerShape,
    eva02_tensors,
    one_to_one,
    openai_tensors,
    siglip_tensors,
    timm_rows,
)
from llm2clip.encoders.weights.safetensors_io import TensorSpec

Claims = Mapping[str, int | str]
"""What a configuration says, by field of ``TowerShape`` or ``"head_width"``."""

_HEADS = {768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published SigLIP towers by their width."""
_HEAD_WIDTH = 64
"""Width of a head of every published CLIP and EVA02 tower."""
_ROPE_TABLE = re.compile(r"visual\.(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)")


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What the header of a file says about the tower in it."""

    shape: TowerShape
    rows: tuple[Rows, ...]
    """Where every tensor of the module comes from."""
    evidence: Mapping[str, str]
    """Field of ``shape`` -> the tensor that it was read from."""
    tables: tuple[str, ...] = ()
    """EVA02: rotary tables in the file; they are recomputed, and compared."""
    found: tuple[str, ...]
    """Which of several possibilities the file is, in words."""


class Header:
    """The tensors of a file, with errors that name file and tensor."""

    def __init__(self, specs: Mapping[str, TensorSpec], path: Path, *, settings: Path | None = None) -> None:
        self.specs = specs
        self.path = path
        self.settings = settings or path.parent / "config.json"
        """Where a configuration is, or should be."""

    def axes(self, name: str, count: int) -> Shape:
        """Shape of a tensor that has ``count`` axes, none of them empty."""
        if name not in self.specs:
            raise ModelError(f"{self.path}: missing tensors: {name}")
        shape = self.specs[name].shape
        if len(shape) != count or min(shape, default=1) < 1:
            raise ModelError(f"{self.path}: {name} is {self.specs[name]}, expected {count} axes, none empty")
        return shape

    def depth(self, prefix: str) -> int:
        """Number of blocks whose tensors' names begin with ``prefix`` and a number."""
        pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
        numbers = {int(found[1]) for name in self.specs if (found := pattern.match(name))}
        # A stray number beyond what the file can hold is left to be reported as unexpected.
        return 1 + max((number for number in numbers if number < len(self.specs)), default=-1)

    def patch(self, name: str) -> tuple[int, int]:
        """Width and side of square RGB patches, from the kernel that reads them."""
        width, colours, high, wide = self.axes(name, 4)
        if colours != 3 or high != wide:
            raise ModelError(
                f"{self.path}: {name} is {self.specs[name]}, expected [width, 3, patch, patch] of a square patch"
            )
        return width, high

    def grid(self, name: str, *, positions: int, extra: int) -> int:
        """Patches per side, from the number of positions."""
        grid = math.isqrt(max(positions - extra, 0))
        if grid < 1 or grid * grid + extra != positions:
            squares = "a square number" + (f" and {extra} more" if extra else "")
            raise ModelError(f"{self.path}: {name} is {self.specs[name]}, expected {squares} of positions")
        return grid


def read_tower(header: Header, claims: Claims) -> Tower:
    """Find out what tower a file holds.

    Args:
        header: The file's tensors.
        claims: What a configuration says, by field of ``TowerShape`` or ``"head_width"``; used for what the
            tensors do not tell (heads, activation, rotary grid).

    Raises:
        ModelError: It is none of the known layouts, or a tensor that says its size is missing or has no
        sensible shape.
    """
    names = header.specs
    if any(name.startswith(TIMM) for name in names):
        return _siglip(header, claims, timm=True)
    if any(name.startswith(f"{TRANSFORMERS}head.") for name in names):
        return _siglip(header, claims, timm=False)
    if any(name.startswith((f"{EVA}blocks.", f"{EVA}patch_embed.")) for name in names):
        return _eva02(header, claims)
    if any(".inner_attn_ln." in name for name in names):
        raise ModelError(
            f"{header.path} is an EVA02 tower as converted for transformers, without its adapter; take the .pt file "
            "of the same repository"
        )
    if any(name.startswith(TRANSFORMERS) for name in names):
        return _openai(header, claims)
    some = ", ".join(list(names)[:3]) or "no tensor"
    raise ModelError(
        f"{header.path} is of no known layout: expected tensors {TRANSFORMERS}*, {EVA}blocks.* or {TIMM}*, got {some}"
    )


def _heads(header: Header, claims: Claims, *, patches: str, width: int, likely: int) -> int:
    heads, head_width = claims.get("heads"), claims.get("head_width")
    if isinstance(heads, int):
        count, said = heads, f"says that there are {heads} heads"
    elif isinstance(head_width, int):
        count = width // head_width if width % head_width == 0 else 0
        said = f"says that heads are {head_width} wide"
    else:
        count, said = likely, "should say num_attention_heads"
    if count < 1 or width % count:
        raise ModelError(
            f"{header.settings} {said}: {patches} of {header.path} is {width} wide, which cannot be cut into such heads"
        )
    return count


def _openai(header: Header, claims: Claims) -> Tower:
    embeddings, layers = f"{TRANSFORMERS}embeddings.", f"{TRANSFORMERS}encoder.layers."
    evidence = {
        "width": f"{embeddings}patch_embedding.weight",
        "patch_size": f"{embeddings}patch_embedding.weight",
        "image_size": f"{embeddings}position_embedding.weight",
        "hidden": f"{layers}0.mlp.fc1.weight",
        "depth": f"{layers}*",
        "dim": "visual_projection.weight",
    }
    width, patch = header.patch(evidence["patch_size"])
    positions = header.axes(evidence["image_size"], 2)[0]
    bias = "visual_projection.bias" in header.specs
    shape = TowerShape(
        layout="openai",
        image_size=patch * header.grid(evidence["image_size"], positions=positions, extra=1),
        patch_size=patch,
        width=width,
        depth=header.depth(layers),
        heads=_heads(header, claims, patches=evidence["width"], width=width, likely=width // _HEAD_WIDTH),
        hidden=header.axes(evidence["hidden"], 2)[0],
        dim=header.axes(evidence["dim"], 2)[0],
        activation=str(claims.get("activation", "quick_gelu")),
        projection_bias=bias,
    )
    found = (
        f"OpenAI CLIP tower named as in transformers, visual_projection {'with' if bias else 'without'} bias"
    )
    return Tower(
        shape=shape,
        rows=one_to_one(openai_tensors(shape)),
        evidence=evidence,
        found=(found, shape.activation),
    )


def _siglip(header: Header, claims: Claims, *, timm: bool) -> Tower:
    patches, positions, fc1, layers = (
        ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "blocks.")
        if timm
        else (
            "embeddings.patch_embedding.weight",
            "embeddings.position_embedding.weight",
            "encoder.layers.0.mlp.fc1.weight",
            "encoder.layers.",
        )
    )
    prefix = TIMM if timm else TRANSFORMERS
    evidence = {
        "width": prefix + patches,
        "dim": prefix + patches,
        "patch_size": prefix + patches,
        "image_size": prefix + positions,
        "hidden": prefix + fc1,
        "depth": f"{prefix}{layers}*",
    }
    width, patch = header.patch(evidence["patch_size"])
    count = header.axes(evidence["image_size"], 3 if timm else 2)[-2]
    shape = TowerShape(
        layout="siglip2",
        image_size=patch * header.grid(evidence["image_size"], positions=count, extra=0),
        patch_size=patch,
        width=width,
        depth=header.depth(prefix + layers),
        heads=_heads(
            header,
            claims,
            patches=evidence["width"],
            width=width,
            likely=_HEADS.get(width, width // _HEAD_WIDTH),
        ),
        hidden=header.axes(evidence["hidden"], 2)[0],
        dim=width,
        # timm builds the published so400m at 224 with the exact function, transformers with the approximate one.
        activation=str(claims.get("activation", "gelu" if timm else "gelu_pytorch_tanh")),
    )
    rows = timm_rows(shape) if timm else one_to_one(siglip_tensors(shape))
    found = f"SigLIP tower named as in {'timm' if timm else 'transformers'}, attention pooling, no projector"
    return Tower(shape=shape, rows=rows, evidence=evidence, found=(found, shape.activation))


def _eva02(header: Header, claims: Claims) -> Tower:
    evidence = {
        "width": f"{EVA}patch_embed.proj.weight",
        "patch_size": f"{EVA}patch_embed.proj.weight",
        "image_size": f"{EVA}pos_embed",
        "hidden": f"{EVA}blocks.0.mlp.w1.weight",
        "depth": f"{EVA}blocks.*",
        "dim": f"{EVA}head.weight",
    }
    width, patch = header.patch(evidence["patch_size"])
    positions = header.axes(evidence["image_size"], 3)[1]
    tables = tuple(name for name in header.specs if _ROPE_TABLE.fullmatch(name))
    head_width = header.axes(tables[0], 2)[1] if tables else _HEAD_WIDTH
    if tables:
        evidence |= {"heads": tables[0], "head_width": tables[0]}
    likely = width // head_width if width % head_width == 0 else 0
    shape = TowerShape(
        layout="eva02",
        image_size=patch * header.grid(evidence["image_size"], positions=positions, extra=1),
        patch_size=patch,
        width=width,
        depth=header.depth(f"{EVA}blocks."),
        heads=likely
        if tables and likely
        else _heads(header, claims, patches=evidence["width"], width=width, likely=likely),
        hidden=header.axes(evidence["hidden"], 2)[0],
        dim=header.axes(evidence["dim"], 2)[0],
        activation="silu",
        rope_grid=int(claims.get("rope_grid", 16)),
    )
    if shape.head_width % 4:
        raise ModelError(
            f"{header.settings} should say num_attention_heads: heads of {shape.head_width}, no multiple of 4, "
            f"cannot turn in two axes ({evidence['width']} of {header.path} is {width} wide)"
        )
    # Files of before LLM2CLIP keep the two biases beside the linear maps.
    old = {
        f"{EVA}blocks.{number}.attn.{kind}_proj.bias": f"{EVA}blocks.{number}.attn.{kind}_bias"
        for number in range(shape.depth)
        for kind in ("q", "v")
        if f"{EVA}blocks.{number}.attn.{kind}_bias" in header.specs
    }
    found = (
        f"EVA02 tower ({EVA}*), biases named {'q_bias, v_bias' if old else 'q_proj.bias, v_proj.bias'}",
        f"{len(tables)} rotary tables in the file" if tables else "no rotary tables in the file",
    )
    return Tower(
        shape=shape,
        rows=one_to_one(eva02_tensors(shape), old),
        evidence=evidence,
        tables=tables,
        found=found,
    )
