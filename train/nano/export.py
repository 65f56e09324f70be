"""Export trained parts as a folder that ``load_encoder`` reads."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from llm2clip.common.files import write_atomic
from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.encoders.layers.llama import AdapterConfig
from llm2clip.encoders.layers.nano_vision import ConvUnit, NanoVisionTower
from llm2clip.encoders.llm2clip.encoder_folder import Llm2ClipConfig
from llm2clip.encoders.llm2clip.save_load import save_llm2clip
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.train.core.tokenizer import EOT
from llm2clip.train.nano.image_batches import PIXEL_MEAN, PIXEL_STD
from llm2clip.train.synthetic.emoji import LANGUAGES

if TYPE_CHECKING:
    from llm2clip.encoders.layers.llama import BidirectionalLlama, TextAdapter
    from llm2clip.train.core.trainer import Run
    from llm2clip.train.nano.image_batches import ImageSide
    from llm2clip.train.nano.pipeline import NanoConfig

NOTE = "trained on emoji artwork and composed scenes; no good at photographs"


def fold_batch_norm(tower: NanoVisionTower) -> NanoVisionTower:
    """The same tower in evaluation mode with every normalisation folded into the convolution before it.

    A convolution, then (y - mean) / sqrt(var + eps) * gain + bias, is a convolution with scaled kernels and a bias.
    """
    folded = NanoVisionTower(dataclasses.replace(tower.config, batch_norm=False))
    source = copy.deepcopy(tower).eval()
    for name, unit in folded.named_modules():
        if isinstance(unit, ConvUnit):
            trained = source.get_submodule(name)
            norm = trained.norm
            if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None or norm.running_mean is None:
                raise ValueError(f"{name} has no batch normalisation with running statistics to fold")
            if not isinstance(trained.conv, nn.Conv2d) or unit.conv.bias is None:
                raise ValueError(f"{name} is not a convolution with a place for its bias")
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            with torch.no_grad():
                unit.conv.weight.copy_(trained.conv.weight * gain[:, None, None, None])
                unit.conv.bias.copy_(norm.bias - norm.running_mean * gain)
    rest = {
        key: value
        for key, value in source.state_dict().items()
        if not any(part in key for part in (".conv.", ".norm.running", ".norm.num_batches"))
        and key in folded.state_dict()
    }
    folded.load_state_dict(folded.state_dict() | rest)
    return folded.eval()


def export_nano(
    run: Run,
    config: NanoConfig,
    language_model: BidirectionalLlama,
    image_side: ImageSide,
    adapter: TextAdapter,
) -> Path:
    """Write the run's result and its story as an encoder folder, ``<run>/nano``, which is returned."""
    folder = run.folder / "nano"
    vision = fold_batch_norm(image_side.vision)
    save_llm2clip(
        folder,
        config=Llm2ClipConfig(
            name="nano",
            note=NOTE,
            licence="MIT",
            languages=LANGUAGES,
            vision=vision.config,
            text=language_model.config,
            adapter=AdapterConfig(width=config.width, dim=config.width),
            preprocessing=Preprocess(
                size=vision.config.image_size,
                mode=ResizeMode.PAD_SQUARE,
                mean=(PIXEL_MEAN,) * 3,
                std=(PIXEL_STD,) * 3,
            ),
            text_rules=TextRules(footer=EOT, max_tokens=config.max_tokens),
        ),
        vision=vision,
        projection=image_side.projection,
        language_model=language_model,
        adapter=adapter,
        logit_scale=math.log(config.align.scale),
        tokenizer_json=run.folder / "tokenizer.json",
        dtype=torch.float16,
    )
    write_atomic(folder / "training.json", json.dumps(run.story(), ensure_ascii=False), alone=True)
    return folder
