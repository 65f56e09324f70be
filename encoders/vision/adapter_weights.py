"""Find the text adapter in a published file, read its sizes from the tensors, and load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.layers.llama import AdapterConfig, TextAdapter
from llm2clip.encoders.vision.tower_detection import Header
from llm2clip.encoders.weights.safetensors_io import check_tensors, of_any_float, read_header, read_tensors

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
        """The adapter with its weights, without gradients.

        Raises:
            ModelError: The file cannot be read, or has values that are not finite.
        """
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


def open_adapter(path: Path, *, normalize_input: bool | None = None) -> AdapterPlan:
    """Find the adapter in a safetensors file that may hold other tensors too.

    Args:
        path: The file.
        normalize_input: Scale the language model's state to unit length first; ``None`` for what the prefix of the
            tensors says (all do but SigLIP2's).

    Raises:
        ModelError: The file is damaged, or has no adapter, or a tensor of it is missing, unexpected or of another
            shape or dtype.
    """
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
