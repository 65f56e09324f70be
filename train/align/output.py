"""What stage 2 leaves: a folder with tower, heads and the name of the text model, for ``export``.

``model.safetensors`` has ``vision.*`` (names of our own modules, updates merged), ``image_head.*`` (``weight`` and
``bias`` of a linear head, ``adaptor.*`` of an adapter, nothing for none), ``text_adapter.adaptor.*``, ``logit_scale``
and perhaps ``logit_bias``; ``align.json`` tells their sizes and what else is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from llm2clip.common.files import atomic_folder, file_sha256
from llm2clip.encoders.core.files import to_json
from llm2clip.encoders.layers.configs import AdapterConfig
from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.train.align.config import AlignConfig
from llm2clip.train.align.heads import Scales
from llm2clip.train.align.towers import Tower
from llm2clip.train.core.config import config_data

FORMAT, VERSION = "llm2clip-aligned", 1
ALIGNED, CONFIG, WEIGHTS = "aligned", "align.json", "model.safetensors"
"""Folder of the result in its run's folder, and its files."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The parts of a finished stage 2; the tower's low-rank updates are merged."""

    tower: Tower
    """Vision tower."""
    image_head: nn.Module
    """Linear, adapter or identity."""
    text_adapter: TextAdapter
    """Adapter of the text features."""
    scales: Scales
    """Learnt numbers of the loss."""
    text_features: str
    """What made the text features, in words."""
    text_kind: str
    """``states`` of a language model, or ``vectors`` of an encoder."""


def write_aligned(
    folder: Path, trained: Trained, config: AlignConfig, *, measures: Mapping[str, float]
) -> None:
    """Write the folder; ``OSError`` if it exists and is not empty."""
    tensors = {f"vision.{name}": tensor for name, tensor in trained.tower.module.state_dict().items()}
    tensors |= {f"image_head.{name}": tensor for name, tensor in trained.image_head.state_dict().items()}
    tensors |= {f"text_adapter.{name}": tensor for name, tensor in trained.text_adapter.state_dict().items()}
    tensors |= dict(trained.scales.state_dict())
    with atomic_folder(folder) as draft:
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(whole, draft / WEIGHTS, metadata={"format": "pt"})
        description = _description(trained, config) | {
            "measures": dict(measures),
            "weights_sha256": file_sha256(draft / WEIGHTS),
        }
        text = json.dumps(description, indent=1, ensure_ascii=False)
        (draft / CONFIG).write_text(text + "\n", encoding="utf-8")


def _description(trained: Trained, config: AlignConfig) -> dict[str, Any]:
    tower, vision, text = trained.tower, config.vision, config.text
    return {
        "format": FORMAT,
        "version": VERSION,
        "dim": config.dim,
        "vision": {
            "layout": tower.layout,
            "source": tower.source,
            "width": tower.width,
            "trained": vision.trained,
            **tower.settings,
        },
        "preprocessing": to_json(tower.preprocess),
        "image_head": _head(trained.image_head, tower.width, config),
        "text_adapter": asdict(_adapter(trained.text_adapter)),
        "text_model": {
            "name": text.model,
            "features": trained.text_kind,
            "made_by": trained.text_features,
            "dtype": text.dtype,
        },
        "config": config_data(config),
    }


def _head(head: nn.Module, width: int, config: AlignConfig) -> dict[str, Any]:
    if isinstance(head, TextAdapter):
        return {"kind": "adapter", **asdict(_adapter(head))}
    if isinstance(head, nn.Linear):
        return {"kind": "linear", "width": width, "dim": config.dim, "bias": head.bias is not None}
    return {"kind": "none", "width": width, "dim": config.dim}


def _adapter(adapter: TextAdapter) -> AdapterConfig:
    last, blocks = adapter.adaptor[-1], len(adapter.adaptor) - 2
    assert isinstance(last, nn.Linear)
    first: Any = adapter.adaptor[0]
    return AdapterConfig(
        width=last.in_features,
        dim=last.out_features,
        blocks=blocks,
        expansion=first.fn[0].out_features // last.in_features if blocks else 2,
        normalize_input=adapter.normalize_input,
    )
