"""A tiny LLM2CLIP encoder with random weights, as modules and as a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import nn

from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.encoders.layers.configs import (
    AdapterConfig,
    EfficientNetLiteConfig,
    LiteTowerConfig,
    LlamaConfig,
)
from llm2clip.encoders.layers.efficientnet_lite import LiteTower
from llm2clip.encoders.layers.llama import BidirectionalLlama, TextAdapter
from llm2clip.encoders.llm2clip.folder_config import Llm2ClipConfig
from llm2clip.encoders.llm2clip.save_load import save_llm2clip
from llm2clip.encoders.text.caption_tokenizer import TextRules

from .published_files import models, tiny_files
from .test_families import references
from .test_hostile_weights import originals

__all__ = ["models", "originals", "references", "tiny_files"]  # fixtures

BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"


@dataclass(frozen=True)
class Parts:
    """The modules of an encoder, in float32, and what is saved beside them."""

    config: Llm2ClipConfig
    vision: LiteTower
    projection: nn.Linear
    language_model: BidirectionalLlama
    adapter: TextAdapter
    tokenizer: Tokenizer

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
        save_llm2clip(
            folder,
            config=self.config,
            vision=self.vision,
            projection=self.projection,
            language_model=self.language_model,
            adapter=self.adapter,
            logit_scale=2.5,
            tokenizer_json=self.tokenizer.to_str(),
            dtype=dtype,
        )
        return folder


def byte_tokenizer() -> Tokenizer:
    """Every byte a token, and a begin token before the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOT, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 256)])
    return tokenizer


def lively(tower: nn.Module) -> nn.Module:
    """Convolutions that keep the scale of what they read: a default tower gives every image nearly one vector."""
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
    return tower


def tiny_parts() -> Parts:
    """An encoder with random weights."""
    torch.manual_seed(7)
    vision = LiteTowerConfig(trunk=EfficientNetLiteConfig(variant=0, image_size=32))
    text = LlamaConfig(
        vocab_size=258,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
    )
    config = Llm2ClipConfig(
        name="tiny",
        note="random weights; for tests",
        licence="MIT",
        languages=("en", "zh"),
        vision=vision,
        text=text,
        adapter=AdapterConfig(width=24, dim=20, blocks=2),
        preprocessing=Preprocess(size=32, mode=ResizeMode.PAD_SQUARE),
        text_rules=TextRules(footer=EOT, max_tokens=40),
        dtype="float32",
    )
    return Parts(
        config=config,
        vision=lively(LiteTower(vision).eval()),
        projection=nn.Linear(1280, 20, bias=False),
        language_model=BidirectionalLlama(text).eval(),
        adapter=TextAdapter(24, 20, blocks=2).eval(),
        tokenizer=byte_tokenizer(),
    )


@pytest.fixture(scope="session")
def parts() -> Parts:
    return tiny_parts()


@pytest.fixture(scope="session")
def tiny_folder(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved encoder, float32. Not to be written to."""
    return parts.save(tmp_path_factory.mktemp("tiny") / "tiny")
