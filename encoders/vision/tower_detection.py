"""Read the architecture and sizes of a vision tower from the header of its file, and compare them with ``config.json``.

Sizes are read from shapes, because published configurations are incomplete; what shapes do not tell (heads,
activation, grid of the rotary frequencies) comes from the configuration, or is what every published tower has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.vision.layouts import (
    EVA,
    LAYOUTS,
    TIMM,
    TRANSFORMERS,
    Axis,
    Layout,
    LayoutName,
    Rows,
)
from llm2clip.encoders.weights.safetensors_io import TensorSpec

_HEADS = {768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published SigLIP towers by their width."""
_HEAD_WIDTH = 64
"""Width of a head of every published CLIP and EVA02 tower."""
_ROPE_TABLE = re.compile(r"visual\.(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)")
_SETTINGS: Final = {
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
"""Section of a configuration (of transformers; of EVA-CLIP and open_clip) -> key there -> field of ``TowerShape``."""
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
_EVA_PARTS = ("rope", "intp_freq", "naiveswiglu", "subln")
"""Parts of EVA02 that a configuration may name; the tower always has them."""


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """Everything about a tower but its weights. Its fields are part of an encoder's identity."""

    layout: LayoutName
    """Which architecture."""
    image_size: int
    """Side of the image, in pixels."""
    patch_size: int
    """Side of a patch, in pixels."""
    width: int
    """Width of the residual stream."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads."""
    hidden: int
    """Width of a block's hidden layer."""
    dim: int
    """Length of the vectors."""
    activation: str = "quick_gelu"
    """Of the hidden layers, as transformers calls it; EVA02 always has SwiGLU."""
    rope_grid: int = 16
    """EVA02: patches per side of the grid the rotary frequencies were made for."""
    projection_bias: bool = False
    """OpenAI: whether the projection has a bias. EVA02's always has one, SigLIP has no projection."""

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True)
class Setting:
    """One value of a configuration."""

    value: int | str
    """The value."""
    key: str
    """Its key, with the section."""


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What the header of a file says about the tower in it."""

    shape: TowerShape
    """Its sizes."""
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

    def __init__(self, specs: Mapping[str, TensorSpec], path: Path) -> None:
        self.specs = specs
        self.path = path
        self.settings = path.parent / "config.json"
        """Where a configuration is, or should be."""

    def axes(self, name: str, count: int) -> tuple[int, ...]:
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


def read_tower(header: Header, settings: Mapping[str, Setting]) -> Tower:
    """Find out what tower a file holds; ``settings`` say what tensors do not (heads, activation, rotary grid)."""
    layout = _layout_of(header)
    width, patch = header.patch(layout.patches)
    axes = next(row.theirs[layout.positions] for row in layout.rows if layout.positions in row.theirs)
    positions = header.axes(layout.positions, len(axes))[-2]
    grid = header.grid(layout.positions, positions=positions, extra=layout.class_tokens)
    evidence = {
        "width": layout.patches,
        "patch_size": layout.patches,
        "image_size": layout.positions,
        "hidden": layout.hidden,
        "depth": f"{layout.blocks}*",
        "dim": layout.projection or layout.patches,
    }
    tables = tuple(name for name in header.specs if layout.name == "eva02" and _ROPE_TABLE.fullmatch(name))
    if tables:
        evidence |= {"heads": tables[0], "head_width": tables[0]}
    activation, rope_grid = settings.get("activation"), settings.get("rope_grid")
    eva = layout.name == "eva02"
    shape = TowerShape(
        layout=layout.name,
        image_size=patch * grid,
        patch_size=patch,
        width=width,
        depth=header.depth(layout.blocks),
        heads=_heads(header, settings, layout, width=width, table=tables[0] if tables else ""),
        hidden=header.axes(layout.hidden, 2)[0],
        dim=header.axes(layout.projection, 2)[0] if layout.projection else width,
        activation=str(activation.value) if activation and not eva else layout.activation,
        rope_grid=int(rope_grid.value) if rope_grid and eva else 16,
        projection_bias=layout.name == "openai" and "visual_projection.bias" in header.specs,
    )
    rows = tuple(expand(layout, shape))
    found: tuple[str, ...] = (layout.found, shape.activation)
    if layout.name == "openai":
        found = (f"{layout.found} {'with' if shape.projection_bias else 'without'} bias", shape.activation)
    if eva:
        rows, biases = _with_old_biases(header, rows)
        count = f"{len(tables)} rotary tables" if tables else "no rotary tables"
        found = (f"{layout.found}, biases named {biases}", f"{count} in the file")
    return Tower(shape=shape, rows=rows, evidence=evidence, tables=tables, found=found)


def expand(layout: Layout, shape: TowerShape) -> Iterator[Rows]:
    """The tensors of a tower of this shape: blocks numbered, axes as lengths."""
    sizes: dict[str, int] = {name: getattr(shape, name) for name in ("width", "hidden", "dim", "patch_size")}
    sizes["positions"] = shape.patches + layout.class_tokens

    def length(axis: Axis) -> int:
        if isinstance(axis, tuple):
            return axis[0] * sizes[axis[1]]
        return sizes[axis] if isinstance(axis, str) else axis

    for row in layout.rows:
        for number in range(shape.depth if "{n}" in row.ours[0] else 1):
            theirs = {
                name.replace("{n}", str(number)): tuple(map(length, axes))
                for name, axes in row.theirs.items()
            }
            yield Rows(theirs, tuple(name.replace("{n}", str(number)) for name in row.ours))
    if shape.projection_bias:
        yield Rows({"visual_projection.bias": (shape.dim,)}, ("visual_projection.bias",))


def _layout_of(header: Header) -> Layout:
    names = header.specs
    if any(".inner_attn_ln." in name for name in names) and not any(name.startswith(EVA) for name in names):
        raise ModelError(
            f"{header.path} is an EVA02 tower as converted for transformers, without its adapter; take the .pt file "
            "of the same repository"
        )
    for layout in LAYOUTS:
        if any(name.startswith(layout.prefixes) for name in names):
            return layout
    some = ", ".join(list(names)[:3]) or "no tensor"
    raise ModelError(
        f"{header.path} is of no known layout: expected tensors {TRANSFORMERS}*, {EVA}blocks.* or {TIMM}*, got {some}"
    )


def _heads(header: Header, settings: Mapping[str, Setting], layout: Layout, *, width: int, table: str) -> int:
    """Attention heads: from a rotary table, else as configured, else as in every published tower."""
    head_width = header.axes(table, 2)[1] if table else _HEAD_WIDTH
    likely = width // head_width if layout.name != "eva02" or width % head_width == 0 else 0
    if layout.name == "siglip2":
        likely = _HEADS.get(width, likely)
    heads, told_width = settings.get("heads"), settings.get("head_width")
    if table and likely:
        count, said = likely, ""
    elif heads:
        count, said = int(heads.value), f"says that there are {heads.value} heads"
    elif told_width:
        count = width // int(told_width.value) if width % int(told_width.value) == 0 else 0
        said = f"says that heads are {told_width.value} wide"
    else:
        count, said = likely, "should say num_attention_heads"
    if count < 1 or width % count:
        raise ModelError(
            f"{header.settings} {said}: {layout.patches} of {header.path} is {width} wide, which cannot be cut into "
            "such heads"
        )
    if layout.name == "eva02" and width // count % 4:
        raise ModelError(
            f"{header.settings} should say num_attention_heads: heads of {width // count}, no multiple of 4, "
            f"cannot turn in two axes ({layout.patches} of {header.path} is {width} wide)"
        )
    return count


def _with_old_biases(header: Header, rows: tuple[Rows, ...]) -> tuple[tuple[Rows, ...], str]:
    """EVA02 files older than LLM2CLIP keep two biases beside the linear maps."""

    def name_of(name: str) -> str:
        old = re.sub(r"attn\.([qv])_proj\.bias$", r"attn.\1_bias", name)
        return old if old in header.specs else name

    renamed = tuple(
        Rows({name_of(name): size for name, size in row.theirs.items()}, row.ours) for row in rows
    )
    return renamed, "q_bias, v_bias" if renamed != rows else "q_proj.bias, v_proj.bias"


def read_settings(config: Mapping[str, Any], *, where: Path) -> dict[str, Setting]:
    """Values of a configuration by field of a tower's shape (or ``"head_width"``); other keys are ignored."""
    found: dict[str, Setting] = {}
    for section, keys in _SETTINGS.items():
        data = config.get(section, {}) if section else config
        if not isinstance(data, Mapping):
            raise ModelError(f"{where}: {section}: expected an object, got {type(data).__name__}")
        for key, name in keys.items():
            value, said = data.get(key), f"{section}.{key}" if section else key
            if value is None:
                continue
            if type(value) is not int or value < 1:
                raise ModelError(f"{where}: {said}: expected a positive whole number, got {value!r}")
            found[name] = Setting(value, said)
    activation = config.get("vision_config", {}).get("hidden_act")
    if activation is not None:
        if activation not in _ACTIVATIONS:
            raise ModelError(
                f"{where}: vision_config.hidden_act: expected one of {list(_ACTIVATIONS)}, got {activation!r}"
            )
        found["activation"] = Setting(activation, "vision_config.hidden_act")
    eva = config.get("vision_cfg", {})
    for key in _EVA_PARTS:
        if eva.get(key, True) is not True:
            raise ModelError(f"{where}: vision_cfg.{key}: expected true as in EVA02, got {eva[key]!r}")
    ratio = eva.get("mlp_ratio")
    if ratio is not None and "width" in found:
        if type(ratio) not in (int, float) or not 0 < ratio < 100:
            raise ModelError(f"{where}: vision_cfg.mlp_ratio: expected a number, got {ratio!r}")
        found["hidden"] = Setting(int(int(found["width"].value) * ratio), "width * vision_cfg.mlp_ratio")
    return found


def check_settings(settings: Mapping[str, Setting], tower: Tower, *, path: Path, where: Path) -> None:
    """Compare a configuration with the tensors."""
    for name, setting in settings.items():
        tensor, actual = tower.evidence.get(name), getattr(tower.shape, name)
        if tensor is not None and setting.value != actual:
            raise ModelError(
                f"{where} says {setting.key} is {setting.value}, but {tensor} of {path} makes it {actual}; correct it, "
                "or remove it: sizes are read from the tensors"
            )
