"""What loading one tower of a baseline costs, measured from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .measured_load import on_linux, weights_loaded

LAYERS = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 16}

SETUP = """
from llm2clip.encoders.baselines.hf_dual import Checkpoint
from llm2clip.encoders.catalog.hub import ModelFiles
checkpoint, dtype = Checkpoint(ModelFiles(name="x", path=Path(sys.argv[1]))), getattr(torch, sys.argv[3])
import transformers.models.clip.modeling_clip, transformers.initialization
checkpoint.settings
load_tower = {"text": checkpoint.load_text, "vision": checkpoint.load_vision}[sys.argv[2]]
load = lambda: load_tower(dtype=dtype, device=torch.device("cpu"))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two towers of 200 MB each in float32, stored in float16."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("large")
    config = CLIPConfig(
        text_config={**LAYERS, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**LAYERS, "image_size": 224, "patch_size": 16},
        projection_dim=512,
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in CLIPModel(config).state_dict().items()}
    tensors = {name: torch.full(shape, 0.01, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    settings = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@on_linux
@pytest.mark.parametrize(("tower", "dtype"), [("vision", "bfloat16"), ("text", "float32")])
def test_load_tower_takes_little_more_than_its_weights(tower: str, dtype: str, large: Path):
    weights = weights_loaded(SETUP, str(large), tower, dtype)
    assert weights > (200_000_000 if dtype == "float32" else 100_000_000)
