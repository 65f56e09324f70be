"""What loading a vision tower and its adapter costs, measured from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.vision.layouts import EVA02, OPENAI, TIMM_SIGLIP
from llm2clip.encoders.vision.tower_detection import TowerShape, expand

from .measured_load import on_linux, weights_loaded

SIZES = {"width": 1024, "depth": 4, "heads": 16, "hidden": 4096, "image_size": 224, "patch_size": 16}
"""Four blocks of a ViT-L: 200 MB in float32."""
SETUP = """
from llm2clip.encoders.vision.vision_tower import open_vision
plan, dtype = open_vision(Path(sys.argv[1])), getattr(torch, sys.argv[3])
plan.build()  # imports what it needs
load = lambda: (plan.load if sys.argv[2] == "tower" else plan.load_adapter)(dtype=dtype)
"""
LAYOUTS = {
    "openai": (OPENAI, 1280, "text_adapter."),
    "eva02": (EVA02, 1280, "text.text_"),
    "timm": (TIMM_SIGLIP, 1024, "text.text_proj.text_"),
}
"""Layout, length of the vectors, and prefix of the adapter in published files."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file per layout, stored as published, with an adapter that reads 2048 numbers."""
    found = {}
    for layout, (table, dim, prefix) in LAYOUTS.items():
        rows = expand(table, TowerShape(layout=table.name, dim=dim, **SIZES))
        shapes = {name: axes for row in rows for name, axes in row.theirs.items()}
        with torch.device("meta"):
            adapter = TextAdapter(2048, dim).state_dict()
        names = {
            prefix + ("adaptor." + name.removeprefix("adaptor.")): value for name, value in adapter.items()
        }
        dtype = torch.float16 if layout == "eva02" else torch.float32
        tensors = {name: torch.full(tuple(shape), 0.01, dtype=dtype) for name, shape in shapes.items()}
        tensors |= {name: torch.full(value.shape, 0.01, dtype=dtype) for name, value in names.items()}
        folder = tmp_path_factory.mktemp(layout)
        save_file(tensors, folder / "model.safetensors")
        heads = {"hidden_size": 1024, "num_attention_heads": 16, "num_heads": 16}
        (folder / "config.json").write_text(json.dumps({"vision_config": heads} if layout != "eva02" else {}))
        found[layout] = folder / "model.safetensors"
    return found


@on_linux
@pytest.mark.parametrize(
    ("layout", "part", "dtype"),
    [
        ("openai", "tower", "float32"),
        ("openai", "adapter", "bfloat16"),
        ("eva02", "tower", "float32"),
        ("timm", "tower", "float16"),
    ],
)
def test_vision_plan_load_takes_little_more_than_its_weights(folders, layout: str, part: str, dtype: str):
    assert weights_loaded(SETUP, str(folders[layout]), part, dtype) > 100_000_000
