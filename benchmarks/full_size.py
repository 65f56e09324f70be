"""One forward pass of each side at full size, with random weights in the published files' form, and what it takes.

    python -m benchmarks.full_size [--dtype int8] [--work FOLDER]

The tower is OpenAI's ViT-B/16 with an adapter for 1B, the language model Llama-3.2-1B: 5.6 GB on disk, written once
and deleted afterwards. The text side is measured in a process of its own, and so is that of images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from benchmarks.measuring import machine

SIDES = ("images", "texts")
_MEASURE = """
import json, sys, time
import numpy as np
import torch
from llm2clip.encoders import load_encoder

def memory(key):
    # Not ru_maxrss: a process inherits that of the one that started it.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

tower, llama, side, dtype = sys.argv[1:]
encoder = load_encoder(tower, language_model=llama, device="cpu", dtype=dtype)
image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
before, started = memory("VmRSS"), time.perf_counter()
encode = (lambda: encoder.encode_images([image])) if side == "images" else (lambda: encoder.encode_texts(["a dog"]))
vector = encode()
loaded = time.perf_counter() - started
started = time.perf_counter()
again = encode()
warm = time.perf_counter() - started
peak = memory("VmHWM")
assert np.isfinite(vector).all() and np.array_equal(vector, again)
print(json.dumps({
    "side": side,
    "held as": encoder.runtime.text_dtype if side == "texts" else encoder.runtime.image_dtype,
    "peak_bytes": peak,
    "before_bytes": before,
    "after_bytes": memory("VmRSS"),
    "first_s": round(loaded, 2),
    "again_s": round(warm, 3),
    "dim": vector.shape[1],
    "loaded": sorted(encoder.loaded_sides),
}))
"""


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m benchmarks.full_size``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_size", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--dtype", default="auto", help="how the language model is held (default: %(default)s)"
    )
    parser.add_argument("--work", type=Path, help="where to write the files (default: a temporary folder)")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a tokenizer.json with Llama 3's special tokens"
    )
    parser.add_argument(
        "--small", action="store_true", help="small models: to see that it runs, not to report"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the numbers with machine and versions"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="llm2clip-full-") as name:
        tower, llama = Path(name) / "tower", Path(name) / "llama"
        sizes = {"tower": write_tower(tower, small=options.small)}
        sizes["language model"] = write_llama(llama, small=options.small, tokenizer=options.tokenizer)
        for what, size in sizes.items():
            print(f"{what}: {size:,} numbers, random", file=sys.stderr)
        measured = []
        for side in SIDES:
            command = [sys.executable, "-c", _MEASURE, str(tower), str(llama), side, options.dtype]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(line, end="")
            measured.append(json.loads(line))
    if options.json:
        where = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
        written = {"command": "python -m benchmarks.full_size"} | where
        written |= {"numbers": sizes, "sides": measured}
        options.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def write_tower(folder: Path, *, small: bool, cut: Mapping[str, Any] | None = None) -> int:
    """OpenAI's ViT-B/16, or other sizes by ``cut``, with projection and an adapter; returns how many numbers it has."""
    import torch

    from llm2clip.encoders.layers.llama import TextAdapter
    from llm2clip.encoders.vision.layouts import OPENAI
    from llm2clip.encoders.vision.tower_detection import TowerShape, expand

    shape = TowerShape(
        layout="openai",
        image_size=224,
        patch_size=16,
        width=768,
        depth=12,
        heads=12,
        hidden=3072,
        dim=1280,
    )
    shape = replace(shape, depth=1, hidden=96, dim=64) if small else shape
    shape = replace(shape, **(cut or {}))
    with torch.device("meta"):
        adapter = TextAdapter(64 if small else 2048, shape.dim).state_dict()
    shapes: dict[str, tuple[int, ...]] = {"logit_scale": ()}
    shapes |= {
        name: cast("tuple[int, ...]", axes)  # expand() puts numbers in the place of names
        for row in expand(OPENAI, shape)
        for name, axes in row.theirs.items()
    }
    shapes |= {f"text_adapter.{name}": tuple(value.shape) for name, value in adapter.items()}
    settings = {
        "model_type": "clip",
        "vision_config": {"hidden_size": shape.width, "patch_size": shape.patch_size},
    }
    return _write(folder, shapes, settings)


def write_llama(folder: Path, *, small: bool, tokenizer: Path, cut: Mapping[str, int] | None = None) -> int:
    """Llama-3.2-1B, with other sizes where ``cut`` has them; returns how many numbers it has."""
    import torch

    from llm2clip.encoders.catalog.entries import find_language
    from llm2clip.encoders.layers.configs import LlamaConfig
    from llm2clip.encoders.layers.llama import BidirectionalLlama

    row = find_language("llama-3.2-1b-cc")
    assert row is not None
    shape = row.shape
    if small:
        shape = replace(shape, vocab_size=1000, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    shape = replace(shape, **(cut or {}))
    with torch.device("meta"):
        model = BidirectionalLlama(LlamaConfig(**asdict(shape)))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = {"rope_scaling": rope | {"original_max_position_embeddings": 8192}}
    settings = (
        {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131072}
        | scaling
        | asdict(shape)
    )
    size = _write(folder, shapes, settings)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return size


def _write(folder: Path, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, object]) -> int:
    """``config.json`` and ``model.safetensors`` of random float32, one tensor in memory at a time."""
    import torch

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    end = 0
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # which older transformers insist on
    for name, shape in shapes.items():
        begin, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            # Gains near 1, everything else small: the states stay in range through all blocks.
            values = torch.randn(shape, generator=generator).mul_(0.02)
            file.write(values.add_(1 if len(shape) == 1 else 0).reshape(-1).numpy().data)
    return end // 4


if __name__ == "__main__":
    main()
