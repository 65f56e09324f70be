"""A language model held in less: memory, peak while loading, tokens per second and how far its answers move.

Llama-3.2-1B cut to a few layers, with random weights stored in float32; each way of holding it in a process of its own,
on one thread. Cosines are to the same model in bfloat16. Random weights are rounded worse than
trained ones: their values fill the range evenly. int8 and int4 need torchao and are left out without it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import Row, Settings
from benchmarks.text_side import middle, write_cut_llama, write_texts

if TYPE_CHECKING:
    from torch import nn

WAYS = ("bfloat16", "float32", "int8", "int4")
LAYERS, TEXTS = 4, 32
MARGIN = 1.15
"""Most that loading may take, in multiples of the weights."""


def measure(settings: Settings) -> list[Row]:
    """One process for each way."""
    from llm2clip.encoders.layers.transformers_modules import has_torchao
    from llm2clip.encoders.weights.quantization import QUANTISED

    work = settings.work
    whole = {"layers": LAYERS, "vocabulary": 128_256}
    small = {"layers": 1, "hidden": 256} if settings.quick else whole
    write_cut_llama(work / "llama", **small)
    tokens = write_texts(work / "texts.json", work / "llama", count=8 if settings.quick else 4 * TEXTS)
    rows = []
    for way in WAYS:
        if way in QUANTISED and not has_torchao():
            print(f"{way} is left out: torchao is not installed", file=sys.stderr)
            continue
        found = _measured(way, settings)
        if way == "bfloat16":
            tokens = found["tokens"]
        rows += _rows(way, found, cosine=_cosine(work, way), tokens=tokens)
    return rows


def _rows(way: str, found: dict[str, Any], *, cosine: float, tokens: int) -> list[Row]:
    def row(what: str, value: float, unit: str, **more: Any) -> Row:  # noqa: ANN401
        return Row(benchmark="quantised", what=f"{way}: {what}", value=value, unit=unit, **more)

    return [
        row("weights", found["weights"] / 1e6, "MB"),
        row("peak while loading / weights", found["peak"] / found["weights"], "ratio", aim=MARGIN),
        row("reading", tokens / found["seconds"], "tokens/s", better="higher", note=f"{tokens:,} tokens"),
        row("least cosine to bfloat16", cosine, "cosine", better="higher", note=f"{cosine:.6f}"),
    ]


def _measured(way: str, settings: Settings) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quantised", str(settings.work), way, settings.clock.__name__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _cosine(work: Path, way: str) -> float:
    import numpy as np

    one, two = (np.load(work / f"{name}.npy").astype(np.float64) for name in (way, "bfloat16"))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return float(((one * two).sum(1) / norms).min())


def held_bytes(model: nn.Module) -> int:
    """Bytes of all weights, those of quantised ones counted with their scales."""
    total = 0
    for parameter in model.parameters():
        inner = getattr(parameter, "tensor_data_names", None)
        parts = [getattr(parameter, name) for name in inner] if inner else [parameter]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


def _run(work: Path, way: str, clock_name: str) -> dict[str, float]:
    import numpy as np
    import torch

    from llm2clip.encoders.text.llm_text_tower import LlmTextTower, language_source
    from llm2clip.encoders.weights.quantization import QUANTISED, weight_quantizer

    torch.set_num_threads(1)
    clock = getattr(time, clock_name)
    found = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    chosen = middle(found["lengths"], min(TEXTS, len(found["texts"])))
    texts = [found["texts"][i] for i in chosen]
    place = torch.device("cpu")
    choice: Any = way
    side = LlmTextTower(language_source(work / "llama"), choice=choice, device=place)
    _warm(weight_quantizer(choice, place) if choice in QUANTISED else None)
    assert side.dtype == way, "what was asked for is taken"
    before = _memory("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the peak so far
    model = side.module()
    peak = _memory("VmHWM:") - before
    side.features(texts[:2])
    began = clock()
    vectors = side.features(texts)
    seconds = clock() - began
    np.save(work / f"{way}.npy", vectors.numpy())
    tokens = sum(found["lengths"][i] for i in chosen)
    return {"weights": held_bytes(model), "peak": peak, "seconds": seconds, "tokens": tokens}


def _warm(round_weight: Any) -> None:  # noqa: ANN401
    """Let libraries take what they take once, before memory is measured."""
    import torch

    layer = torch.nn.Linear(256, 256, bias=False).requires_grad_(False)
    if round_weight is not None:
        round_weight(layer.bfloat16())
    torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)


def _memory(key: str) -> int:
    """A line of the kernel's account of this process, in bytes (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


if __name__ == "__main__":
    folder, way, clock = sys.argv[1:]
    print(json.dumps(_run(Path(folder), way, clock)))
