"""Long-CLIP and EVA02-CLIP from their published ``.pt``: one file, text tower named as in OpenAI's program.

Long-CLIP (arXiv 2403.15378) is OpenAI's CLIP with 248 positions. Its file has two tables of positions: the first
twenty are from one, the rest from the other. EVA02-CLIP (arXiv 2303.15389), which LLM2CLIP's EVA02 towers started
from, has the vision tower of ``layers/eva02.py`` and CLIP's text tower with the exact GELU.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import nn

from llm2clip.encoders.baselines.hf_dual import TextTower, VisionTower, build, build_settings, fill
from llm2clip.encoders.baselines.hf_families import FAMILIES
from llm2clip.encoders.baselines.openai_layout import read_tower_tensors, text_settings, vision_settings
from llm2clip.encoders.baselines.shared import converted_weights, describe, settings_hash, tokenizer_folder
from llm2clip.encoders.catalog.hub import ModelFiles
from llm2clip.encoders.core.dual_encoder import DualEncoder, LoadOptions, pick_device, pick_dtype
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.images.hf_preprocessor import OPENAI_MEAN, OPENAI_STD
from llm2clip.encoders.images.preprocess import Crop, Order, PixelTower, Preprocess, ResizeMode
from llm2clip.encoders.text.clip_tokenizer import TokenReader, TokenTower, load_tokenizer
from llm2clip.encoders.vision.vision_tower import open_vision
from llm2clip.encoders.weights.pickle_conversion import read_conversion
from llm2clip.encoders.weights.safetensors_io import read_header, read_tensors

KEPT = 20
"""Positions of Long-CLIP that are as in CLIP."""
_STRETCHED = "positional_embedding_res"
_POSITIONS = "text_model.embeddings.position_embedding.weight"
_CLIP = FAMILIES["clip"]
_VISION, _SCALE = "visual.", "logit_scale"
_LONG_TEXT = ("transformer.", "token_embedding.", "positional_", "ln_final.", "text_projection")
_EVA_TEXT = "text."


class _Checkpoint:
    """The converted file, and what both models have in common."""

    def __init__(self, files: ModelFiles, options: LoadOptions, *, prefix: str, activation: str) -> None:
        self.files = files
        self.path = converted_weights(files)
        self.prefix = prefix
        self.device = pick_device(options.device)
        self.dtype = pick_dtype(options.dtype, device=self.device, stored="float16")
        self.parity = options.parity
        self.config: dict[str, Any] = text_settings(self.path, prefix=prefix, activation=activation)
        self.limit = int(self.config["text_config"]["max_position_embeddings"])
        self.specs = read_header(self.path)

    @cached_property
    def settings(self) -> Any:  # noqa: ANN401
        return build_settings(_CLIP, self.config, where=self.path)

    def check_dim(self, dim: int, source: str) -> None:
        if self.config["projection_dim"] != dim:
            raise ModelError(
                f"{self.path}: {self.prefix}text_projection gives vectors of {self.config['projection_dim']}, "
                f"{source} of {dim}; expected the same"
            )

    def preprocess(self, image_size: int) -> Preprocess:
        return Preprocess(
            size=image_size,
            mode=ResizeMode.SHORTEST_CROP,
            mean=OPENAI_MEAN,
            std=OPENAI_STD,
            crop=Crop.HALF_EVEN,
            order=Order.RESIZE_FIRST,
            parity=self.parity,
        )

    def reader(self) -> TokenReader:
        vocabulary = int(self.config["text_config"]["vocab_size"])
        tokenizer = load_tokenizer(tokenizer_folder(self.files), form=_CLIP.form, vocabulary=vocabulary)
        return TokenReader(tokenizer, form=_CLIP.form, limit=self.limit)

    def load(
        self, tower: type[TextTower | VisionTower], *, prefix: str, others: tuple[str, ...]
    ) -> nn.Module:
        """A tower of transformers filled from the tensors that begin with ``prefix``; ``others`` are ignored."""
        module = build(lambda: tower(_CLIP, self.settings), where=self.path)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        tensors = read_tower_tensors(
            self.path, shapes, prefix=prefix, others=(*others, _SCALE), dtype=self.dtype
        )
        if _STRETCHED in others:
            tensors[_POSITIONS] = self._stretched(tensors[_POSITIONS])
        return fill(module, tensors, device=self.device)

    def _stretched(self, kept: torch.Tensor) -> torch.Tensor:
        """Long-CLIP's table of positions: the first from one tensor, the rest from another."""
        rest = read_tensors(self.path, [_STRETCHED], dtype=self.dtype)[_STRETCHED]
        if rest.shape != kept.shape:
            raise ModelError(
                f"{self.path}: {_STRETCHED} is {list(rest.shape)}, expected {list(kept.shape)} as "
                "positional_embedding"
            )
        return torch.cat((kept[:KEPT], rest[KEPT:]))

    def encoder(self, images: PixelTower, texts: TokenTower, *, family: str, parameters: int) -> DualEncoder:
        return DualEncoder(
            images,
            texts,
            describe=lambda: describe(
                self.files,
                images.preprocess,
                dim=int(self.config["projection_dim"]),
                max_text_tokens=self.limit,
                weights_sha256=read_conversion(self.path).sha256,
                settings_sha256=settings_hash(self.files, self.config, form=_CLIP.form),
                family=family,
                parameters=parameters,
            ),
        )


def load_long_clip(files: ModelFiles, options: LoadOptions) -> DualEncoder:
    """Open a Long-CLIP."""
    found = _Checkpoint(files, options, prefix="", activation="quick_gelu")
    vision = vision_settings(found.path, prefix=_VISION, activation="quick_gelu")
    found.check_dim(vision["projection_dim"], "visual.proj")
    found.config |= vision
    images = PixelTower(
        lambda: found.load(VisionTower, prefix=_VISION, others=_LONG_TEXT),
        preprocess=found.preprocess(vision["vision_config"]["image_size"]),
        dtype=found.dtype,
        device=found.device,
    )
    texts = TokenTower(
        lambda: found.load(TextTower, prefix="", others=(_VISION, _STRETCHED)),
        reader=found.reader,
        device=found.device,
        dtype=found.dtype,
    )
    parameters = sum(spec.size for spec in found.specs.values())
    return found.encoder(images, texts, family="long-clip", parameters=parameters)


def load_eva02_clip(files: ModelFiles, options: LoadOptions) -> DualEncoder:
    """Open an EVA02-CLIP."""
    found = _Checkpoint(files, options, prefix=_EVA_TEXT, activation="gelu")
    plan = open_vision(found.path, settings={}, ignore=(_EVA_TEXT,))
    found.check_dim(plan.dim, "the vision tower")
    images = PixelTower(
        lambda: plan.load(dtype=found.dtype, device=found.device),
        preprocess=found.preprocess(plan.image_size),
        dtype=found.dtype,
        device=found.device,
    )
    texts = TokenTower(
        lambda: found.load(TextTower, prefix=_EVA_TEXT, others=(_VISION,)),
        reader=found.reader,
        device=found.device,
        dtype=found.dtype,
    )
    text_numbers = sum(spec.size for name, spec in found.specs.items() if name.startswith(_EVA_TEXT))
    found.config |= {"vision": asdict(plan.shape)}
    return found.encoder(images, texts, family="eva02-clip", parameters=plan.parameters + text_numbers)
