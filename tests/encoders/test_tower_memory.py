"""What loading a vision tower and its adapter costs, measured from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.vision.tensor_layouts import (
    TowerShape,
    eva02_tensors,
    openai_tensors,
    siglip_tensors,
    timm_rows,
)

SIZES = {"width": 1024, "depth": 4, "heads": 16, "hidden": 4096, "image_size": 224, "patch_size": 16}
"""Four blocks of a ViT-L: 200 MB in float32."""
MEASURE = """
import resource, sys
from pathlib import Path
import torch
from llm2clip.encoders.vision.vision_tower import open_vision

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

plan, dtype = open_vision(Path(sys.argv[1])), getattr(torch, sys.argv[3])
plan.build()  # imports what it needs
torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)
before = resident()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak so far
module = (plan.load if sys.argv[2] == "tower" else plan.load_adapter)(dtype=dtype)
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
weights = sum(p.numel() * p.element_size() for p in module.parameters())
print(peak - before, resident() - before, weights)
"""


def shapes_of(layout: str) -> tuple[dict[str, tuple[int, ...]], str]:
    """Names and shapes of a published file of the layout, and how its adapter's names begin."""
    if layout == "openai":
        return openai_tensors(TowerShape(layout="openai", dim=1280, **SIZES)), "text_adapter."
    if layout == "eva02":
        return eva02_tensors(TowerShape(layout="eva02", dim=1280, **SIZES)), "text.text_"
    shape = TowerShape(layout="siglip2", dim=1024, **SIZES)
    if layout == "siglip2":
        return siglip_tensors(shape), "text.text_proj.text_"
    rows = (row.theirs for row in timm_rows(shape))
    return {name: each for row in rows for name, each in row.items()}, "text.text_proj.text_"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file per layout, stored as published, with an adapter that reads 2048 numbers."""
    found = {}
    for layout in ("openai", "eva02", "timm"):
        shapes, prefix = shapes_of(layout)
        with torch.device("meta"):
            adapter = TextAdapter(2048, 1024 if layout == "timm" else 1280).state_dict()
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by the kernel of Linux")
@pytest.mark.parametrize(
    ("layout", "part", "dtype"),
    [
        ("openai", "tower", "float32"),
        ("openai", "adapter", "bfloat16"),
        ("eva02", "tower", "float32"),
        ("timm", "tower", "float16"),
    ],
)
def test_loading_takes_little_more_than_holding(folders, layout: str, part: str, dtype: str):
    command = [sys.executable, "-c", MEASURE, str(folders[layout]), part, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, resident, weights = map(int, done.stdout.split())
    print(
        f"{layout} {part} {dtype}: peak {peak / weights:.3f}, afterwards {resident / weights:.3f} times the weights"
    )
    assert weights > 100_000_000
    assert weights * 0.98 <= resident
    assert peak <= 1.15 * weights, f"{peak / weights:.3f} times the weights"
