"""Export the vision tower alone as a folder of transformers' ``CLIPVisionModel``.

LLaVA and similar programs read such a folder. The projection into the space shared with texts is not part of it: they
use the states of the patches.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.images.hf_preprocessor import FILE as IMAGE_SETTINGS
from llm2clip.encoders.images.preprocess import Preprocess, Resample, ResizeMode
from llm2clip.encoders.vision.layouts import TRANSFORMERS
from llm2clip.encoders.vision.tower_detection import TowerShape
from llm2clip.encoders.weights.safetensors_io import DTYPES, read_header, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from llm2clip.encoders.vision.vision_source import VisionSource

_FILTERS = {Resample.LANCZOS: 1, Resample.BILINEAR: 2, Resample.BICUBIC: 3}
"""Pillow's numbers."""


def save_clip_vision(vision: VisionSource, folder: Path) -> None:
    """Write a tower of the OpenAI layout as ``CLIPVisionModel.from_pretrained`` and ``CLIPImageProcessor`` read it."""
    import torch

    plan = vision.plan
    check_clip_vision(plan.layout, name=vision.name)
    header = read_header(plan.path)
    names = [name for rows in plan.tower.rows for name in rows.theirs if name.startswith(TRANSFORMERS)]
    stored = {ours: theirs for theirs, ours in DTYPES.items()}[header[names[0]].dtype]
    tensors = read_tensors(plan.path, names, dtype=getattr(torch, stored))
    write_clip_vision(folder, tensors, shape=plan.shape, preprocess=vision.preprocess("native"))


def check_clip_vision(layout: str, *, name: str) -> None:
    """Raise ``ModelError`` where a tower is not one of ``CLIPVisionModel``."""
    if layout != "openai":
        raise ModelError(
            f"{name} has a tower of the layout {layout}, which CLIPVisionModel does not support; "
            "it supports those of llm2clip-openai-b-16, llm2clip-openai-l-14-224 and llm2clip-openai-l-14-336"
        )


def write_clip_vision(
    folder: Path, tensors: Mapping[str, Tensor], *, shape: TowerShape, preprocess: Preprocess
) -> None:
    """Write the tensors ``vision_model.*`` of a tower with what the two classes of transformers need beside them."""
    from safetensors.torch import save_file

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; name another folder")
    stored = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        draft = Path(name) / "draft"
        draft.mkdir()
        # transformers refuses files that do not say which library's they are.
        save_file(dict(tensors), draft / "model.safetensors", metadata={"format": "pt"})
        _write(draft / "config.json", _model_settings(shape, stored))
        _write(draft / IMAGE_SETTINGS, _image_settings(preprocess))
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)


def _model_settings(shape: TowerShape, stored: str) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "hidden_act": shape.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": shape.dim,
        "torch_dtype": stored,
    }


def _image_settings(preprocess: Preprocess) -> dict[str, Any]:
    side = preprocess.size
    square = {"height": side, "width": side}
    crops = preprocess.mode is ResizeMode.SHORTEST_CROP
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side} if crops else square,
        "resample": _FILTERS[preprocess.resample],
        "do_center_crop": crops,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
