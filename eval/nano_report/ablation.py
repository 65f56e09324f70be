"""A copy of an encoder whose language model has lost its transformer blocks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

_OUTPUTS = (".self_attn.o_proj.weight", ".mlp.down_proj.weight")
"""The two matrices through which a Llama block adds to its residual stream."""


def without_blocks(folder: Path, copy: Path) -> Encoder:
    """Switch the blocks off by zeroing their output matrices, and load the result.

    What is left of the text tower is an embedding table, a norm, mean pooling and the adapter: a bag of
    tokens. The gap to the whole model is what the blocks are worth.

    Args:
        folder: A saved encoder.
        copy: Folder to write, which must not exist.

    Raises:
        ValueError: If the encoder has no Llama blocks.
        OSError: If a file cannot be read or written.
    """
    from safetensors.torch import load_file, save_file

    from llm2clip.encoders import load_encoder

    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    found = [name for name in tensors if name.endswith(_OUTPUTS)]
    if not found:
        raise ValueError(
            f"{weights} has no tensor ending in {' or '.join(_OUTPUTS)}, so there is nothing to switch off. "
            "Leave this measurement out: --no-blocks"
        )
    for name in found:
        tensors[name] = tensors[name].zero_()
    save_file(tensors, weights)
    encoder: Encoder = load_encoder(copy)
    return encoder
