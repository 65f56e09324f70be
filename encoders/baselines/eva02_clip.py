"""EVA02-CLIP (arXiv 2303.15389) from its published ``.pt``: the towers LLM2CLIP's EVA02 towers started from.

The vision tower is that of ``eva02.py``; the text tower is CLIP's with the exact GELU.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from llm2clip.encoders.baselines.hf_dual import TextTower, build, build_settings, fill
from llm2clip.encoders.baselines.hf_families import FAMILIES
from llm2clip.encoders.baselines.load_request import Request
from llm2clip.encoders.baselines.openai_layout import read_side, text_settings
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.images.hf_preprocessor import OPENAI_MEAN, OPENAI_STD
from llm2clip.encoders.images.preprocess import Crop, Order, Preprocess, ResizeMode
from llm2clip.encoders.text.clip_tokenizer import TokenReader, load_tokenizer
from llm2clip.encoders.text.dual_encoder import DualEncoder, ImageTower, TowerTextSide
from llm2clip.encoders.vision.vision_tower import open_vision
from llm2clip.encoders.weights.pickle_conversion import read_conversion
from llm2clip.encoders.weights.safetensors_io import read_header

_CLIP = FAMILIES["clip"]
_TEXT, _VISION, _SCALE = "text.", "visual.", "logit_scale"


def load_eva02_clip(asked: Request) -> DualEncoder:
    """Open an EVA02-CLIP.

    Raises:
        ModelError: A file is missing, damaged, or holds something else.
    """
    towers = _Towers(asked)
    return DualEncoder(
        images=ImageTower(
            lambda: towers.plan.load(dtype=asked.dtype, device=asked.device),
            preprocess=towers.preprocess,
            dtype=asked.dtype,
            device=asked.device,
        ),
        texts=TowerTextSide(towers.text, reader=towers.reader, device=asked.device),
        describe=lambda: asked.info(
            family="eva02-clip",
            dim=towers.plan.dim,
            preprocess=towers.preprocess,
            limit=towers.limit,
            sha256=read_conversion(towers.path).sha256,
            settings_sha256=towers.settings_sha256,
            parameters=towers.parameters,
        ),
    )


class _Towers:
    def __init__(self, asked: Request) -> None:
        self.asked = asked
        self.path = asked.converted()
        self.plan = open_vision(self.path, settings={}, ignore=(_TEXT,))
        self.config: dict[str, Any] = text_settings(self.path, prefix=_TEXT, activation="gelu")
        if self.config["projection_dim"] != self.plan.dim:
            raise ModelError(
                f"{self.path}: text.text_projection gives vectors of {self.config['projection_dim']}, the vision "
                f"tower of {self.plan.dim}; expected the same"
            )
        self.limit = int(self.config["text_config"]["max_position_embeddings"])
        self.preprocess = Preprocess(
            size=self.plan.image_size,
            mode=ResizeMode.SHORTEST_CROP,
            mean=OPENAI_MEAN,
            std=OPENAI_STD,
            crop=Crop.HALF_EVEN,
            order=Order.RESIZE_FIRST,
            parity=asked.parity,
        )

    @property
    def parameters(self) -> int:
        """Trained numbers of both towers and the scale."""
        texts = (spec.size for name, spec in read_header(self.path).items() if name.startswith(_TEXT))
        return self.plan.parameters + sum(texts)

    @property
    def settings_sha256(self) -> str:
        """SHA-256 of what shapes the vectors besides weights and preprocessing."""
        settings = {**self.config, "vision": asdict(self.plan.shape)}
        return self.asked.settings_hash(settings, form=_CLIP.form)

    def reader(self) -> TokenReader:
        vocabulary = int(self.config["text_config"]["vocab_size"])
        tokenizer = load_tokenizer(self.asked.tokenizer_folder(), form=_CLIP.form, vocabulary=vocabulary)
        return TokenReader(tokenizer, form=_CLIP.form, limit=self.limit)

    def text(self) -> nn.Module:
        settings = build_settings(_CLIP, self.config, where=self.path)
        module = build(lambda: TextTower(_CLIP, settings), where=self.path)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        others = (_VISION, _SCALE)
        tensors = read_side(self.path, shapes, prefix=_TEXT, others=others, dtype=self.asked.dtype)
        return fill(module, tensors, device=self.asked.device)
