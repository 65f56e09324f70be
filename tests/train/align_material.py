"""Small images whose captions name their colours, and stage 2 on them with tiny towers.

Run as a script (``torchrun``, or alone) with a folder of images and one for the run it trains there; with a number as a
third argument the process of that rank dies in the step of that number.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llm2clip.common.terminal import one_line_errors
from llm2clip.encoders import FakeEncoder
from llm2clip.encoders.fake import COLOURS
from llm2clip.train.align import material
from llm2clip.train.align.config import AlignConfig, PairData, TextConfig, VisionConfig
from llm2clip.train.align.pipeline import prepare, run_align
from llm2clip.train.core.distributed import joined, process_number
from llm2clip.train.core.loop import train
from llm2clip.train.core.param_groups import GroupConfig
from llm2clip.train.core.run_folder import Run
from llm2clip.train.core.stage import LoopConfig

OPENAI = Path(__file__).parent.parent / "golden/data/c_openai/clip_p14"
EVA = OPENAI.parent.parent / "a_eva02/p14_grid_eq/weights.safetensors"
"""A tower of our own modules: transformers takes seconds to import."""
NAMES = [name for name in COLOURS if name not in ("black", "white")]
CHINESE = dict(zip(NAMES, ["红", "绿", "蓝", "黄", "青", "紫"], strict=True))


def write_images(folder: Path, count: int = 40) -> Path:
    """Images of two colours, left and right, with captions in two languages beside them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        left, right = (NAMES[n] for n in rng.integers(len(NAMES), size=2))
        pixels = np.zeros((40, 50, 3), np.uint8)
        pixels[:, :25], pixels[:, 25:] = COLOURS[left], COLOURS[right]
        noisy = (pixels.astype(int) + rng.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:03d}.png")
        captions = {
            "en": [f"image {number} of {left} and {right}", f"a {left} thing, {right} {number}"],
            "zh": [f"{left} {CHINESE[left]} {right} {number}"],
        }
        (folder / f"{number:03d}.json").write_text(json.dumps({"captions": captions}))
    return folder


def small_config(images: Path, **changes) -> AlignConfig:
    config = AlignConfig(
        train=PairData(images=(str(images),)),
        kept_back=4,
        vision=VisionConfig(tower=str(OPENAI)),
        text=TextConfig(model="fake", blocks=1),
        dim=12,
        batch=12,
        micro_batch=12,
        groups=GroupConfig(visual_lr=3e-3, text_lr=3e-3, lr=1e-3),
        loop=LoopConfig(steps=20, warmup=2, evaluate_every=10, checkpoint_every=5, log_every=1),
        seed=3,
    )
    return replace(config, **changes)


def use_fake_texts() -> None:
    material.load_encoder = lambda *_args, **_kwargs: FakeEncoder()  # type: ignore[assignment]


def in_processes(images: Path, **changes) -> AlignConfig:
    """The run that several processes make."""
    vision = VisionConfig(tower=str(EVA), trained="full")
    groups = GroupConfig(visual_lr=1e-4, text_lr=1e-3, lr=1e-3)
    config = small_config(images, vision=vision, groups=groups, **changes)
    return replace(config, loop=replace(config.loop, steps=30, evaluate_every=30))


def main(images: Path, out: Path, dies: int | None) -> None:
    torch.set_num_threads(1)
    use_fake_texts()
    config = in_processes(images)
    with joined(torch.device("cpu"), minutes=1):
        if dies is None:
            with one_line_errors():
                run_align(config, out)
            return
        stage = prepare(config, out, tell=lambda _line: None).stage
        before = stage.step

        def step(number, rng):
            if number == dies and process_number() == 1:
                os._exit(9)
            return before(number, rng)

        stage.step = step  # type: ignore[method-assign]
        with one_line_errors():
            train(Run(out, seed=3), stage, config.loop)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
