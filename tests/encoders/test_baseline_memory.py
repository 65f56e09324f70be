"""What loading one side of a baseline costs, measured from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

LAYERS = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 16}

MEASURE = """
import resource, sys
from pathlib import Path
import torch
from llm2clip.encoders.baselines.hf_dual import Checkpoint
from llm2clip.encoders.catalog.hub import ModelFiles

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

dtype = getattr(torch, sys.argv[3])
checkpoint = Checkpoint(ModelFiles(name="x", path=Path(sys.argv[1])))
load = {"text": checkpoint.load_text, "vision": checkpoint.load_vision}[sys.argv[2]]
import transformers.models.clip.modeling_clip, transformers.initialization
checkpoint.settings
torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)
before = resident()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak so far
module = load(dtype=dtype, device=torch.device("cpu"))
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
weights = sum(p.numel() * p.element_size() for p in module.parameters())
print(peak - before, weights)
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("side", "dtype"), [("vision", "float32"), ("vision", "bfloat16"), ("text", "float32")]
)
def test_load_tower_takes_little_more_than_its_weights(side: str, dtype: str, large: Path):
    command = [sys.executable, "-c", MEASURE, str(large), side, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, weights = map(int, done.stdout.split())
    assert weights > (200_000_000 if dtype == "float32" else 100_000_000)
    assert peak <= 1.15 * weights, f"{peak / weights:.3f} of the weights"
