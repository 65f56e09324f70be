"""Both stages of LLM2CLIP at the sizes of the paper, with random weights and made-up data: speed and memory.

    python -m benchmarks.gpu.training stage1|stage2 [--tiny] [--device cpu] [--steps 3] [--json FILE]

stage1: a language model of Llama-3-8B's shape, LoRA of rank 16, bfloat16, 512 images a step, texts of 6 to 40 words;
under ``torchrun`` its weights are spread over the processes. stage2: CLIP's ViT-L/14 at 336 px, all of it trained in
bfloat16 against cached features of 4,096 numbers, 4,096 pairs a step. Both recompute activations.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.caption_contrast import captions, write_model
from benchmarks.full_size import write_tower
from benchmarks.measuring import Row
from benchmarks.report import table, terminal_columns
from llm2clip.encoders.layers.configs import LlamaConfig
from llm2clip.encoders.text.packed import build_language
from llm2clip.train.align.config import AlignConfig, PairData, TextConfig, VisionConfig
from llm2clip.train.align.heads import make_image_head, make_text_adapter
from llm2clip.train.align.stage import AlignStage, Images
from llm2clip.train.align.towers import load_tower, prepare_training
from llm2clip.train.cc.config import TuneSettings
from llm2clip.train.cc.objectives import ContrastStage
from llm2clip.train.cc.text_model import open_text_model
from llm2clip.train.core import distributed
from llm2clip.train.core.device import Machine
from llm2clip.train.core.stage import LoopConfig, Trainable
from llm2clip.train.data.caption_batches import BatchConfig, CaptionBatches
from llm2clip.train.data.caption_pool import CaptionPool
from llm2clip.train.data.captions import Caption, CaptionGroup
from llm2clip.train.data.pair_batches import PairBatches

LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=5e5,
)
_TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
_TOWER_L = {"patch_size": 14, "image_size": 336, "width": 1024, "depth": 24, "heads": 16, "hidden": 4096}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m benchmarks.gpu.training``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.training", description=__doc__)
    parser.add_argument("stage", choices=["stage1", "stage2"])
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes: to see that it runs, not to report"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=3, help="steps measured, after one that is not")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    distributed.local_device(Machine(device=options.device)).use()
    with distributed.joined(torch.get_default_device()), tempfile.TemporaryDirectory() as work:
        make = stage_one if options.stage == "stage1" else stage_two
        stage, per_item, unit = make(Path(work), tiny=options.tiny)
        rows = measure(stage, name=options.stage, steps=options.steps, per_item=per_item, unit=unit)
        if distributed.is_first():
            print(table(rows, columns=terminal_columns()))
            if options.json:
                written = [asdict(row) for row in rows]
                options.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def stage_one(work: Path, *, tiny: bool) -> tuple[Trainable, float, str]:
    """Caption contrast; with the tokens of a text on average."""
    several = distributed.process_count() > 1
    size, micro_batch = (16, 8) if tiny else (512, 64)
    tune = TuneSettings(
        precision="bfloat16", micro_batch=micro_batch, checkpointing=True, sharded=several, parts="lora"
    )
    device = torch.get_default_device()
    with torch.device("cpu"):
        model = open_text_model(write_model(work / "llama", _TINY_LLAMA), tune, device=device)
    if not tiny:
        with torch.device("meta"):
            module = build_language(LLAMA_8B).to(torch.bfloat16)
        model.module = module.to_empty(device=device)
        torch.manual_seed(0)
        for parameter in module.parameters():
            torch.nn.init.ones_(parameter) if parameter.ndim == 1 else torch.nn.init.normal_(
                parameter, std=0.02
            )
    model.begin(tune, seed=0)
    pairs = captions(4 * size)
    groups = [CaptionGroup(str(n), (Caption(a), Caption(b))) for n, (a, b) in enumerate(pairs)]
    batches = CaptionBatches(CaptionPool(groups), BatchConfig(size=size), seed=0)
    tokens = model.reader.count_tokens([text for pair in pairs for text in pair])
    return ContrastStage(model, tune, batches), float(np.mean(tokens)), "tokens/s"


def stage_two(work: Path, *, tiny: bool) -> tuple[Trainable, float, str]:
    """Images against cached text features."""
    size, micro_batch, width = (16, 8, 64) if tiny else (4096, 64, 4096)
    config = AlignConfig(
        train=PairData(images=("random pixels",)),
        vision=VisionConfig(tower=str(work / "tower"), trained="full", checkpointing=True),
        text=TextConfig(model="random features"),
        dim=64 if tiny else 1280,
        batch=size,
        micro_batch=micro_batch,
        precision="bfloat16",
        loop=LoopConfig(steps=1),
    )
    with torch.device("cpu"):
        write_tower(work / "tower", small=tiny, cut=None if tiny else _TOWER_L)
    tower = load_tower(config.vision.tower)
    prepare_training(tower, config.vision)
    rng = np.random.default_rng(0)
    side = tower.preprocess.size
    pixels = rng.integers(0, 256, (micro_batch, side, side, 3), dtype=np.uint8)
    features = torch.randn(4 * size, width)
    texts = [(Caption(f"caption {number}"),) for number in range(4 * size)]
    stage = AlignStage(
        config,
        tower=tower,
        heads=(make_image_head(tower, config), make_text_adapter(width, config)),
        batches=PairBatches(texts, size=size, mix=config.mix, seed=0),
        images=Images(take=lambda chosen: pixels[chosen % micro_batch]),
        texts=lambda numbers: features[torch.from_numpy(numbers).to(features.device)],
        keys=tuple(str(number) for number in range(4 * size)),
    )
    return stage, 1.0, "images/s"


def measure(stage: Trainable, *, name: str, steps: int, per_item: float, unit: str) -> list[Row]:
    """Seconds of whole steps with the optimiser's, and the most memory of the first process's GPU."""
    device = torch.get_default_device()
    parameters = [parameter for group in stage.optimizer.param_groups for parameter in group["params"]]
    rng = np.random.default_rng(0)
    items, began = 0, perf_counter()
    for number in range(steps + 1):
        stage.optimizer.zero_grad()
        done = stage.step(number, rng)
        distributed.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        stage.optimizer.step()
        if not math.isfinite(done.losses["loss"]):
            raise ValueError(f"the loss of step {number} is {done.losses['loss']}")
        if number == 0:
            items, began = 0, perf_counter()
        else:
            items += done.items
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    rate = items * per_item / (perf_counter() - began)
    note = f"{distributed.process_count()} processes"
    rows = [Row(benchmark=name, what="training", value=rate, unit=unit, better="higher", note=note)]
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device) / 2**30
        rows.append(Row(benchmark=name, what="memory of a GPU", value=most, unit="GiB", note=note))
    return rows


if __name__ == "__main__":
    main()
