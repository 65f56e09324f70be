"""Long-CLIP (arXiv 2403.15378): OpenAI's CLIP with 248 positions instead of 77, from its published ``.pt``.

Its file has two tables of positions: the first twenty, which CLIP knew well, are from one, the rest from the other.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm2clip.encoders.baselines.hf_dual import TextTower, VisionTower, build, build_settings, fill
from llm2clip.encoders.baselines.hf_families import FAMILIES
from llm2clip.encoders.baselines.load_request import Request
from llm2clip.encoders.baselines.openai_layout import read_side, text_settings, vision_settings
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.images.hf_preprocessor import OPENAI_MEAN, OPENAI_STD
from llm2clip.encoders.images.preprocess import Crop, Order, Preprocess, ResizeMode
from llm2clip.encoders.text.clip_tokenizer import TokenReader, load_tokenizer
from llm2clip.encoders.text.dual_encoder import DualEncoder, ImageTower, TowerTextSide
from llm2clip.encoders.weights.pickle_conversion import read_conversion
from llm2clip.encoders.weights.safetensors_io import read_header, read_tensors

KEPT = 20
"""Positions at the front that are as in CLIP."""
_STRETCHED = "positional_embedding_res"
_POSITIONS = "text_model.embeddings.position_embedding.weight"
_CLIP = FAMILIES["clip"]
_VISION = "visual."
_UNUSED = "logit_scale"


def load_long_clip(asked: Request) -> DualEncoder:
    """Open a Long-CLIP.

    Raises:
        ModelError: A file is missing, damaged, or holds something else.
    """
    towers = _Towers(asked)
    return DualEncoder(
        images=ImageTower(
            towers.vision, preprocess=towers.preprocess, dtype=asked.dtype, device=asked.device
        ),
        texts=TowerTextSide(towers.text, reader=towers.reader, device=asked.device),
        describe=lambda: asked.info(
            family="long-clip",
            dim=int(towers.settings.projection_dim),
            preprocess=towers.preprocess,
            limit=towers.limit,
            sha256=read_conversion(towers.path).sha256,
            settings_sha256=towers.settings_sha256,
            parameters=sum(spec.size for spec in read_header(towers.path).values()),
        ),
    )


class _Towers:
    def __init__(self, asked: Request) -> None:
        self.asked = asked
        self.path = asked.converted()
        self.config = self._config(self.path)
        self.preprocess = Preprocess(
            size=self.config["vision_config"]["image_size"],
            mode=ResizeMode.SHORTEST_CROP,
            mean=OPENAI_MEAN,
            std=OPENAI_STD,
            crop=Crop.HALF_EVEN,
            order=Order.RESIZE_FIRST,
            parity=asked.parity,
        )
        self.limit = int(self.config["text_config"]["max_position_embeddings"])

    @staticmethod
    def _config(path: Path) -> dict[str, Any]:
        text = text_settings(path, prefix="", activation="quick_gelu")
        vision = vision_settings(path, prefix=_VISION, activation="quick_gelu")
        if text["projection_dim"] != vision["projection_dim"]:
            raise ModelError(
                f"{path}: text_projection gives vectors of {text['projection_dim']}, visual.proj of "
                f"{vision['projection_dim']}; expected the same"
            )
        return {**text, **vision}

    @cached_property
    def settings(self) -> Any:  # noqa: ANN401
        return build_settings(_CLIP, self.config, where=self.path)

    @property
    def settings_sha256(self) -> str:
        """SHA-256 of what shapes the vectors besides weights and preprocessing."""
        return self.asked.settings_hash(self.config, form=_CLIP.form)

    def reader(self) -> TokenReader:
        vocabulary = int(self.config["text_config"]["vocab_size"])
        tokenizer = load_tokenizer(self.asked.tokenizer_folder(), form=_CLIP.form, vocabulary=vocabulary)
        return TokenReader(tokenizer, form=_CLIP.form, limit=self.limit)

    def vision(self) -> nn.Module:
        module = build(lambda: VisionTower(_CLIP, self.settings), where=self.path)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        text = ("transformer.", "token_embedding.", "positional_", "ln_final.", "text_projection", _UNUSED)
        tensors = read_side(self.path, shapes, prefix=_VISION, others=text, dtype=self.asked.dtype)
        return fill(module, tensors, device=self.asked.device)

    def text(self) -> nn.Module:
        module = build(lambda: TextTower(_CLIP, self.settings), where=self.path)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        others = (_VISION, _STRETCHED, _UNUSED)
        tensors = read_side(self.path, shapes, prefix="", others=others, dtype=self.asked.dtype)
        kept = tensors[_POSITIONS]
        rest = read_tensors(self.path, [_STRETCHED], dtype=self.asked.dtype)[_STRETCHED]
        if rest.shape != kept.shape:
            raise ModelError(
                f"{self.path}: {_STRETCHED} is {list(rest.shape)}, expected {list(kept.shape)} as "
                "positional_embedding"
            )
        tensors[_POSITIONS] = torch.cat((kept[:KEPT], rest[KEPT:]))
        return fill(module, tensors, device=self.asked.device)
