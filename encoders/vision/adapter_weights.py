"""The text adapter of a published file: where it is, how large it is, and the adapter itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.layers.llama import AdapterConfig, TextAdapter
from llm2clip.encoders.vision.tower_detection import Header
from llm2clip.encoders.weights.safetensors_io import (
    TensorSpec,
    check_tensors,
    of_any_float,
    read_header,
    read_tensors,
)

PREFIXES = ("text.text_proj.text_adaptor.", "text.text_adaptor.", "text_adapter.adaptor.")
"""How the names of an adapter's tensors begin: in SigLIP2's release, in the ``.pt`` files, in OpenAI's release."""
_RAW = PREFIXES[0]
"""The one whose adapter is fed with states as they are, not scaled to unit length."""


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """An adapter that has been found in a file, and is not loaded yet."""

    path: Path
    """The file."""
    prefix: str
    """How the names of its tensors begin there."""
    config: AdapterConfig
    """Its shape."""
    names: Mapping[str, str]
    """Parameter of ``TextAdapter`` -> tensor of the file."""
    found: str
    """Which of several possibilities it is, in words."""

    @property
    def expected(self) -> dict[str, tuple[int, ...]]:
        """Tensor of the file -> its shape."""
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in self._build().state_dict().items()}
        return {self.names[name]: shape for name, shape in shapes.items()}

    def load(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> TextAdapter:
        """The adapter with its weights, without gradients.

        Raises:
            ModelError: The file cannot be read, or has values that are not finite.
        """
        with torch.device("meta"):
            adapter = self._build()
        tensors = read_tensors(self.path, self.names.values(), dtype=dtype, device=device)
        adapter.load_state_dict({ours: tensors[theirs] for ours, theirs in self.names.items()}, assign=True)
        return adapter.requires_grad_(False).eval()

    def _build(self) -> TextAdapter:
        config = self.config
        return TextAdapter(
            config.width,
            config.dim,
            blocks=config.blocks,
            expansion=config.expansion,
            normalize_input=config.normalize_input,
        )


def open_adapter(path: Path, *, normalize_input: bool | None = None) -> AdapterPlan:
    """Look at a file that holds an adapter, and perhaps a tower and a scale beside it.

    Args:
        path: A safetensors file.
        normalize_input: Scale the language model's state to unit length first; ``None`` for what the name of the
            adapter says (all do but SigLIP2's).

    Raises:
        ModelError: The file is damaged, or there is no adapter in it, or a tensor of it is missing, unexpected or of
            another shape or dtype.
    """
    specs = read_header(path)
    plan = find_adapter(Header(specs, path), normalize_input=normalize_input)
    if plan is None:
        raise ModelError(
            f"{path} holds no text adapter: expected tensors {', '.join(p + '*' for p in PREFIXES)}"
        )
    mine = {name: spec for name, spec in specs.items() if name.startswith(plan.prefix)}
    check_adapter(plan, mine)
    return plan


def check_adapter(plan: AdapterPlan, specs: Mapping[str, TensorSpec]) -> None:
    """Raise ``ModelError`` where the tensors of a file are not exactly the adapter's."""
    shapes = plan.expected
    expected = {name: of_any_float(shape, specs.get(name)) for name, shape in shapes.items()}
    config = plan.config
    what = f"a text adapter of {config.blocks} blocks from {config.width} to {config.dim}"
    check_tensors(specs, expected, path=plan.path, what=what)


def find_adapter(header: Header, *, normalize_input: bool | None = None) -> AdapterPlan | None:
    """The adapter among the tensors of a file, by the names that are known; ``None`` if there is none."""
    present = [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in header.specs)]
    if not present:
        return None
    if len(present) > 1:
        raise ModelError(
            f"{header.path} holds two text adapters: {present[0]}* and {present[1]}*; expected one"
        )
    (prefix,) = present
    blocks = _count_blocks(header, prefix)
    width = header.axes(f"{prefix}{blocks}.weight", 1)[0]
    inner = header.axes(f"{prefix}0.fn.0.weight", 2)[0]
    if inner % width:
        name = f"{prefix}0.fn.0.weight"
        raise ModelError(
            f"{header.path}: {name} is {header.specs[name]}, expected a multiple of {width} rows"
        )
    # Without the dropout between them the second linear map would be number 2 of the sequence.
    second = "fn.2" if f"{prefix}0.fn.2.weight" in header.specs else "fn.3"
    norm = "norm" if f"{prefix}0.norm.weight" in header.specs else "ln"
    leaves = {"fn.0": "fn.0", "fn.3": second, "ln": norm}
    names = {
        f"adaptor.{number}.{ours}.{kind}": f"{prefix}{number}.{theirs}.{kind}"
        for number in range(blocks)
        for ours, theirs in leaves.items()
        for kind in ("weight", "bias")
    }
    for number in (blocks, blocks + 1):
        names |= {f"adaptor.{number}.{kind}": f"{prefix}{number}.{kind}" for kind in ("weight", "bias")}
    config = AdapterConfig(
        width=width,
        dim=header.axes(f"{prefix}{blocks + 1}.weight", 2)[0],
        blocks=blocks,
        expansion=inner // width,
        normalize_input=prefix != _RAW if normalize_input is None else normalize_input,
    )
    state = "scaled to unit length" if config.normalize_input else "as they are"
    found = f"text adapter {prefix}* (layers fn.0, {second}, {norm}), fed with states {state}"
    return AdapterPlan(path=header.path, prefix=prefix, config=config, names=names, found=found)


def _count_blocks(header: Header, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.fn\.")
    numbers = {int(found[1]) for name in header.specs if (found := pattern.match(name))}
    blocks = 1 + max((number for number in numbers if number < len(header.specs)), default=-1)
    if not blocks:
        raise ModelError(f"{header.path}: missing tensors: {prefix}0.fn.0.weight")
    return blocks
