"""Published vision towers: the header of a file says what it holds, the weights are read when they are needed.

A file may hold a text adapter and a learnt scale beside the tower, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object
from llm2clip.encoders.layers.configs import AdapterConfig
from llm2clip.encoders.layers.eva02 import Eva02Config, Eva02Tower, rotary_tables
from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.layers.transformers_modules import build_clip_vision, build_siglip_vision
from llm2clip.encoders.vision.layouts import EVA, TRANSFORMERS, LayoutName
from llm2clip.encoders.vision.tower_detection import (
    Header,
    Setting,
    Tower,
    TowerShape,
    check_settings,
    read_settings,
    read_tower,
)
from llm2clip.encoders.weights.safetensors_io import (
    TensorSpec,
    check_tensors,
    of_any_float,
    read_header,
    read_tensors,
)
from llm2clip.encoders.weights.tensor_names import CONFIG_FILE, LOGIT_SCALE

_SCALARS = (LOGIT_SCALE, "logit_bias")
"""Learnt numbers of the loss; search does not use them."""
_COUNTERS = "position_ids"
"""End of the names of tensors that old releases of transformers stored; ignored."""
_TABLE_ERROR = 5e-3
"""Largest difference of a rotary table from the computed one; bfloat16 rounds by up to 0.004."""
_ROPE_GRIDS: tuple[int, ...] = (16, *range(1, 129))
"""Grids of rotary frequencies to try, the published one first."""


PREFIXES = ("text.text_proj.text_adaptor.", "text.text_adaptor.", "text_adapter.adaptor.")
"""Prefixes of an adapter's tensors: in SigLIP2's release, in the ``.pt`` files, in OpenAI's release."""
_RAW = PREFIXES[0]
"""The one whose adapter reads states as they are, not scaled to unit length."""


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """An adapter found in a file; its weights are not loaded yet."""

    path: Path
    """The file."""
    prefix: str
    """Prefix of its tensors there."""
    config: AdapterConfig
    """Its sizes."""
    names: Mapping[str, str]
    """Parameter of ``TextAdapter`` -> tensor of the file."""
    found: str
    """Which of several possibilities it is, in words."""

    @property
    def expected(self) -> dict[str, tuple[int, ...]]:
        """Tensor of the file -> its shape."""
        state = self._build().state_dict()
        return {self.names[name]: tuple(tensor.shape) for name, tensor in state.items()}

    def load(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> TextAdapter:
        """The adapter with its weights, without gradients."""
        adapter = self._build()
        tensors = read_tensors(self.path, self.names.values(), dtype=dtype, device=device)
        adapter.load_state_dict({ours: tensors[theirs] for ours, theirs in self.names.items()}, assign=True)
        return adapter.requires_grad_(False).eval()

    def _build(self) -> TextAdapter:
        config = self.config
        with torch.device("meta"):
            return TextAdapter(
                config.width,
                config.dim,
                blocks=config.blocks,
                expansion=config.expansion,
                normalize_input=config.normalize_input,
            )


@dataclass(frozen=True, kw_only=True)
class VisionPlan:
    """A vision tower found in a file; its weights are not loaded yet."""

    path: Path
    """The safetensors file."""
    tower: Tower
    """Its sizes, and where its tensors are."""
    text: AdapterPlan | None
    """The adapter in the same file, if there is one."""
    parameters: int
    """Trained numbers in the file: tower, adapter and scale."""
    scalars: tuple[str, ...]
    """Learnt numbers of the loss in the file."""

    @property
    def shape(self) -> TowerShape:
        """Sizes of the tower."""
        return self.tower.shape

    @property
    def layout(self) -> LayoutName:
        """Which architecture it is."""
        return self.shape.layout

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        return self.shape.dim

    @property
    def image_size(self) -> int:
        """Side of the image it reads, in pixels."""
        return self.shape.image_size

    @property
    def adapter(self) -> AdapterConfig | None:
        """Sizes of the text adapter in the same file."""
        return self.text.config if self.text else None

    @property
    def found(self) -> tuple[str, ...]:
        """Which of several known possibilities the file turned out to be, in words."""
        adapter = self.text.found if self.text else "no text adapter"
        return (*self.tower.found, adapter, *(f"{name} in the file" for name in self.scalars))

    def build(self) -> nn.Module:
        """The tower without weights: parameters on the meta device, computed buffers real."""
        with torch.device("meta"):
            return build_tower(self.shape)

    def load(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> nn.Module:
        """The tower with its weights, without gradients; see :meth:`build`."""
        module = self.build()
        self._check_tables()
        names = [name for rows in self.tower.rows for name in rows.theirs]
        tensors = read_tensors(self.path, names, dtype=dtype, device=device)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        weights: dict[str, Tensor] = {}
        for rows in self.tower.rows:
            pieces = [tensors.pop(name) for name in rows.theirs]
            whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            places = [_place(name, shapes) for name in rows.ours]
            parts = whole.split([shapes[name][0] for name in places]) if len(places) > 1 else (whole,)
            # Copies of parts, so that none of them keeps the others' memory alive.
            weights |= {
                name: part.clone() if len(places) > 1 else part.reshape(shapes[name])
                for name, part in zip(places, parts, strict=True)
            }
        module.load_state_dict(weights, strict=True, assign=True)
        return module.to(device).requires_grad_(False).eval()

    def load_adapter(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> TextAdapter | None:
        """The text adapter with its weights, if the file has one; the tower is not read."""
        return self.text.load(dtype=dtype, device=device) if self.text else None

    def logit_scale(self) -> float | None:
        """The learnt logarithm of the factor that turns scores into logits, if the file has it."""
        if LOGIT_SCALE not in self.scalars:
            return None
        return float(read_tensors(self.path, [LOGIT_SCALE], dtype=torch.float32)[LOGIT_SCALE])

    def _check_tables(self) -> None:
        grid = self.shape.rope_grid
        for name, table in read_tensors(self.path, self.tower.tables, dtype=torch.float32).items():
            error = _table_error(name, table, self.shape, grid)
            if error > _TABLE_ERROR:
                raise ModelError(
                    f"{self.path}: {name} is not the rotary table of a {grid} x {grid} grid (it differs by "
                    f"{error:.2g}); say vision_cfg.pt_hw_seq_len and head_width in {CONFIG_FILE}"
                )


def open_vision(
    path: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    normalize_input: bool | None = None,
    ignore: tuple[str, ...] = (),
) -> VisionPlan:
    """Find the vision tower in a published file. No weight is read but small rotary tables.

    ``settings`` is a parsed configuration, ``None`` for the ``config.json`` beside the file; it must agree with the
    tensors. Tensors with the prefixes in ``ignore`` belong to something else, such as a text tower.
    """
    beside = path.parent / CONFIG_FILE
    if settings is None:
        settings = read_object(beside, folder=path.parent) if beside.is_file() else {}
    known = read_settings(settings, where=beside)
    header = Header(read_header(path), path)
    tower = read_tower(header, known)
    if tower.tables and "rope_grid" not in known:
        tower = read_tower(header, {**known, "rope_grid": Setting(_measure_rope_grid(path, tower), "")})
    check_settings(known, tower, path=path, where=beside)
    if normalize_input is None and tower.shape.layout == "siglip2":
        normalize_input = False
    adapter = find_adapter(header, normalize_input=normalize_input)
    mine = {
        name: spec
        for name, spec in header.specs.items()
        if (adapter and name.startswith(adapter.prefix))
        or not (name in tower.tables or name.endswith(_COUNTERS) or name.startswith(ignore))
    }
    _check_file(header, tower, adapter, mine)
    return VisionPlan(
        path=path,
        tower=tower,
        text=adapter,
        parameters=sum(spec.size for spec in mine.values()),
        scalars=tuple(name for name in _SCALARS if name in header.specs),
    )


def open_adapter(path: Path, *, normalize_input: bool | None = None) -> AdapterPlan:
    """Find the adapter in a safetensors file that may hold other tensors too."""
    specs = read_header(path)
    plan = find_adapter(Header(specs, path), normalize_input=normalize_input)
    if plan is None:
        raise ModelError(
            f"{path} holds no text adapter: expected tensors {', '.join(p + '*' for p in PREFIXES)}"
        )
    mine = {name: spec for name, spec in specs.items() if name.startswith(plan.prefix)}
    expected = {name: of_any_float(shape, specs.get(name)) for name, shape in plan.expected.items()}
    check_tensors(mine, expected, path=path, what="a text adapter")
    return plan


def find_adapter(header: Header, *, normalize_input: bool | None = None) -> AdapterPlan | None:
    """The adapter among the tensors of a file; ``None`` if there is none."""
    present = [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in header.specs)]
    if not present:
        return None
    if len(present) > 1:
        raise ModelError(
            f"{header.path} holds two text adapters: {present[0]}* and {present[1]}*; expected one"
        )
    (prefix,) = present
    first = f"{prefix}0.fn.0.weight"
    inner, width = header.axes(first, 2)
    # The last two numbers of the sequence are the norm and the projection.
    blocks = header.depth(prefix) - 2
    dim = header.axes(f"{prefix}{blocks + 1}.weight", 2)[0]
    if inner % width:
        raise ModelError(
            f"{header.path}: {first} is {header.specs[first]}, expected a multiple of {width} rows"
        )
    # Without the dropout between them the second linear map would be number 2 of the sequence.
    second = "fn.2" if f"{prefix}0.fn.2.weight" in header.specs else "fn.3"
    norm = "norm" if f"{prefix}0.norm.weight" in header.specs else "ln"
    layers = {
        f"{number}.{ours}": f"{number}.{theirs}"
        for number in range(blocks)
        for ours, theirs in (("fn.0", "fn.0"), ("fn.3", second), ("ln", norm))
    }
    layers |= {str(number): str(number) for number in (blocks, blocks + 1)}
    config = AdapterConfig(
        width=width,
        dim=dim,
        blocks=blocks,
        expansion=inner // width,
        normalize_input=prefix != _RAW if normalize_input is None else normalize_input,
    )
    state = "scaled to unit length" if config.normalize_input else "as they are"
    return AdapterPlan(
        path=header.path,
        prefix=prefix,
        config=config,
        names={
            f"adaptor.{ours}.{kind}": f"{prefix}{theirs}.{kind}"
            for ours, theirs in layers.items()
            for kind in ("weight", "bias")
        },
        found=f"text adapter {prefix}* (layers fn.0, {second}, {norm}), fed with states {state}",
    )


def _check_file(
    header: Header, tower: Tower, adapter: AdapterPlan | None, mine: Mapping[str, TensorSpec]
) -> None:
    shape, specs = tower.shape, header.specs
    if adapter and adapter.config.dim != shape.dim:
        last = adapter.names[f"adaptor.{adapter.config.blocks + 1}.weight"]
        raise ModelError(
            f"{header.path}: the text adapter gives vectors of {adapter.config.dim} ({last}), the {shape.layout} tower "
            f"of {shape.dim} ({tower.evidence['dim']}); expected the same"
        )
    sizes: dict[str, Any] = {name: size for rows in tower.rows for name, size in rows.theirs.items()}
    sizes |= dict.fromkeys(tower.tables, (shape.patches, shape.head_width))
    sizes |= adapter.expected if adapter else {}
    sizes |= {name: specs[name].shape if specs[name].size == 1 else () for name in _SCALARS if name in specs}
    expected = {name: of_any_float(size, specs.get(name)) for name, size in sizes.items()}
    known = {name: spec for name, spec in specs.items() if name in expected or name in mine}
    what = f"an {shape.layout} tower of {shape.depth} blocks of width {shape.width}"
    check_tensors(known, expected, path=header.path, what=what)


def _table_error(name: str, table: Tensor, shape: TowerShape, grid: int) -> float:
    """Largest difference of a rotary table from the one computed for a grid."""
    computed = rotary_tables(_eva02_config(shape, grid))[name.endswith("_sin")]
    return float((computed - table).abs().max()) if computed.shape == table.shape else float("inf")


def _measure_rope_grid(path: Path, tower: Tower) -> int:
    """The grid that the rotary tables in a file were made for; the published one if they fit none."""
    name = tower.tables[0]
    table = read_tensors(path, [name], dtype=torch.float32)[name]
    fitting = (grid for grid in _ROPE_GRIDS if _table_error(name, table, tower.shape, grid) <= _TABLE_ERROR)
    return next(fitting, _ROPE_GRIDS[0])


def _eva02_config(shape: TowerShape, rope_grid: int) -> Eva02Config:
    return Eva02Config(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        hidden=shape.hidden,
        dim=shape.dim,
        rope_grid=rope_grid,
    )


def build_tower(shape: TowerShape, *, projection: bool = True) -> nn.Module:
    """A tower with new weights. Shape: (B, 3, S, S), normalised -> (B, dim), or (B, width) without its projection."""
    tower = _build(shape)
    if not projection:
        take_projection(tower, shape.layout)
    return tower


def take_projection(tower: nn.Module, layout: LayoutName) -> nn.Linear | None:
    """The projection of a tower, with an identity in its place; ``None`` if the layout has none."""
    owner: Any = tower if layout == "eva02" else getattr(tower, "model", None)
    name = {"eva02": "head", "openai": "visual_projection"}.get(layout)
    if name is None:
        return None
    taken: nn.Linear = getattr(owner, name)
    setattr(owner, name, nn.Identity())
    return taken


def _build(shape: TowerShape) -> nn.Module:
    if shape.layout == "eva02":
        return Eva02Tower(_eva02_config(shape, shape.rope_grid))
    sizes = {
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "hidden_act": shape.activation,
    }
    if shape.layout == "openai":
        return build_clip_vision(sizes, dim=shape.dim, bias=shape.projection_bias)
    return build_siglip_vision(sizes)


def _place(name: str, shapes: Mapping[str, object]) -> str:
    """Name of a tensor in the module; releases of transformers differ in a prefix."""
    tails = (name.removeprefix(EVA), f"model.{name}", f"model.{name.removeprefix(TRANSFORMERS)}")
    return next((tail for tail in tails if tail in shapes), name)
