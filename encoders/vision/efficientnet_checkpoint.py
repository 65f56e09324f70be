"""Published weights of EfficientNet-Lite: the PyTorch port's state dict, with batch normalisation and classifier."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.layers.configs import EfficientNetLiteConfig, trained_size
from llm2clip.encoders.layers.efficientnet_lite import EfficientNetLite, stages
from llm2clip.encoders.weights.pickle_conversion import convert_into_home
from llm2clip.encoders.weights.safetensors_io import (
    TensorSpec,
    check_tensors,
    of_any_float,
    read_header,
    read_tensors,
)

_PARTS = {
    "stem.conv": "_conv_stem",
    "stem.norm": "_bn0",
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
    "head.conv": "_conv_head",
    "head.norm": "_bn1",
    "classifier": "_fc",
}
"""Module of ours -> its name in the port."""
_OURS = re.compile(r"(?:(blocks)\.(\d+)\.)?(.+)\.(\w+)")
_COUNTER = "num_batches_tracked"
"""A training program's counter: ignored."""


def load_efficientnet_lite(
    path: str | Path,
    *,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> EfficientNetLite:
    """A published EfficientNet-Lite with batch normalisation and classifier, in evaluation mode.

    Which variant it is follows from the shapes. ``.folded()`` makes of it what inference needs.

    Args:
        path: ``.pth`` file, read without running code in it, or the same tensors as ``.safetensors``.
        image_size: Side of the input in pixels; by default that of its training.
        dtype: Of the weights.
        device: Where they are put.

    Raises:
        ModelError: The file is damaged, or a tensor is missing, unexpected or of another shape.
    """
    path = Path(path)
    file = path if path.suffix == ".safetensors" else convert_into_home(path)
    found = {name: spec for name, spec in read_header(file).items() if not name.endswith(_COUNTER)}
    variant = _variant(found, path)
    classes = found.get(f"{_PARTS['classifier']}.bias")
    with torch.device("meta"):
        model = EfficientNetLite(
            EfficientNetLiteConfig(
                variant=variant,
                image_size=image_size or trained_size(variant),
                classes=classes.shape[0] if classes is not None and len(classes.shape) == 1 else 0,
                batch_norm=True,
            )
        )
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    names = {name: published_name(name) for name in shapes if not name.endswith(_COUNTER)}
    expected = {theirs: of_any_float(shapes[ours], found.get(theirs)) for ours, theirs in names.items()}
    check_tensors(found, expected, path=path, what=f"EfficientNet-Lite{variant}")
    tensors = read_tensors(file, names.values(), dtype=dtype, device=device)
    state = {ours: tensors[theirs] for ours, theirs in names.items()}
    counters = {name: torch.zeros((), dtype=torch.int64) for name in shapes if name.endswith(_COUNTER)}
    model.load_state_dict(state | counters, assign=True)
    return model.to(device).requires_grad_(False).eval()


def published_name(name: str) -> str:
    """The port's name of a tensor of ``EfficientNetLite``."""
    match = _OURS.fullmatch(name)
    assert match is not None, name
    blocks, number, part, leaf = match.groups()
    prefix = f"_{blocks}.{number}." if blocks else ""
    return f"{prefix}{_PARTS[part]}.{leaf}"


def _variant(found: dict[str, TensorSpec], path: Path) -> int:
    """The variant whose last block has the number and the width that the file's has."""
    head = found.get(f"{_PARTS['head.conv']}.weight")
    blocks = len({name.split(".")[1] for name in found if name.startswith("_blocks.")})
    width = head.shape[1] if head is not None and len(head.shape) == 4 else 0
    known = {(sum(s.blocks for s in stages(n)), stages(n)[-1].width): n for n in (0, 1, 2)}
    if (blocks, width) not in known:
        said = ", ".join(f"Lite{n}: {sizes[0]} and {sizes[1]}" for sizes, n in known.items())
        raise ModelError(
            f"{path} is no EfficientNet-Lite that is read here: {blocks} blocks and {width} channels before "
            f"_conv_head, expected ({said})"
        )
    return known[blocks, width]
