"""Published vision towers: the header of a file says what it holds, the weights are read when they are needed.

A file may hold a text adapter and a learnt scale beside the tower, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object
from llm2clip.encoders.layers.activations import import_quietly, replace_quick_gelu
from llm2clip.encoders.layers.eva02 import Eva02Config, Eva02Tower, rotary_tables
from llm2clip.encoders.layers.llama import AdapterConfig
from llm2clip.encoders.vision.adapter_weights import AdapterPlan, find_adapter
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

if TYPE_CHECKING:
    from llm2clip.encoders.layers.llama import TextAdapter

_SCALARS = (LOGIT_SCALE, "logit_bias")
"""Learnt numbers of the loss; search does not use them."""
_COUNTERS = "position_ids"
"""End of the names of tensors that old releases of transformers stored; ignored."""
_TABLE_ERROR = 5e-3
"""Largest difference of a rotary table from the computed one; bfloat16 rounds by up to 0.004."""
_ROPE_GRIDS: tuple[int, ...] = (16, *range(1, 129))
"""Grids of rotary frequencies to try, the published one first."""


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
        """The tower without weights: parameters on the meta device, computed buffers real.

        Returns:
            A module from normalised pixels, shape (B, 3, S, S), float, to vectors, shape (B, dim), not normalised.
        """
        with torch.device("meta"):
            return _build(self.shape)

    def load(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> nn.Module:
        """The tower with its weights, without gradients; see :meth:`build`.

        Raises:
            ModelError: The file cannot be read, a value is not finite, or a rotary table is not the expected one.
        """
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
        """The text adapter with its weights, if the file has one; the tower is not read.

        Raises:
            ModelError: The file cannot be read, or a value is not finite.
        """
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

    Args:
        path: A safetensors file.
        settings: A configuration, as parsed from JSON; ``None`` for the ``config.json`` beside the file, if any.
            Sizes are read from the tensors; the configuration must agree with them.
        normalize_input: Whether the adapter scales the language model's state to unit length first; ``None`` for what
            is known of the release (all do but SigLIP2's).
        ignore: Prefixes of tensors that belong to something else, such as a text tower.

    Raises:
        ModelError: The file is damaged or of no known layout, a tensor is missing, unexpected or of another shape
            or dtype, or the configuration disagrees.
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


class TransformersTower(nn.Module):
    """A vision model of transformers, reduced to one of its outputs."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Shape: (B, 3, S, S), float, normalised -> (B, dim), not normalised."""
        vectors: Tensor = getattr(self.model(pixel_values=pixels_B3SS), self.output)
        return vectors


def _build(shape: TowerShape) -> nn.Module:
    if shape.layout == "eva02":
        return Eva02Tower(_eva02_config(shape, shape.rope_grid))
    import_quietly()
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    sizes: dict[str, Any] = {
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "hidden_act": shape.activation,
    }
    model: nn.Module
    if shape.layout == "openai":
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, projection_dim=shape.dim))
        if shape.projection_bias:
            model.visual_projection = nn.Linear(shape.width, shape.dim)
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**sizes))
    for name, buffer in list(model.named_buffers()):
        # The only buffer of the two counts positions and is in no file, so it must not stay on the meta device.
        owner = model.get_submodule(name.rpartition(".")[0])
        owner.register_buffer(
            name.rpartition(".")[2],
            torch.arange(buffer.numel(), device="cpu").view(buffer.shape),
            persistent=False,
        )
    return TransformersTower(
        replace_quick_gelu(model), "image_embeds" if shape.layout == "openai" else "pooler_output"
    )


def _place(name: str, shapes: Mapping[str, object]) -> str:
    """Name of a tensor in the module; releases of transformers differ in a prefix."""
    tails = (name.removeprefix(EVA), f"model.{name}", f"model.{name.removeprefix(TRANSFORMERS)}")
    return next((tail for tail in tails if tail in shapes), name)
