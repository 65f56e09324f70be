"""The nano recipe: from packages by name to the shipped weights, stage by stage."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llm2clip.common.files import write_atomic
from llm2clip.encoders.layers.llama import BidirectionalLlama, LlamaConfig, TextAdapter
from llm2clip.train.core.text_states import TextEncoder
from llm2clip.train.core.tokenizer import build_tokenizer
from llm2clip.train.core.trainer import LoopConfig, Run, RunError
from llm2clip.train.nano.align import AlignStage, align, identity_adapter
from llm2clip.train.nano.caption_batches import ContrastiveStage, LanguageConfig, Prototypes
from llm2clip.train.nano.image_batches import AlignConfig, Gallery, ImageSide
from llm2clip.train.nano.teacher import ask_teacher
from llm2clip.train.nano.text_features import SceneFeatures, TextFeatures, cache_scenes, cache_texts
from llm2clip.train.nano.text_tower import bind_places, pretrain, tune_embeddings, tune_model
from llm2clip.train.nano.vision_tower import CrowdStage, PlaceHead, train_vision, train_vision_on_scenes
from llm2clip.train.synthetic.emoji import Emoji, load_artwork, load_emoji
from llm2clip.train.synthetic.phrases import SCENE_LANGUAGES
from llm2clip.train.synthetic.scenes import caption, sample_scene, scene_pool
from llm2clip.train.synthetic.texts import TextPool, load_descriptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """Everything that decides the weights."""

    seed: int = 20
    """Seed of every draw but one: BPE dropout comes from the tokenizers library, which takes no seed."""
    vocab_size: int = 16_000
    """Tokens of the tokenizer."""
    width: int = 192
    """Width of the language model."""
    layers: int = 3
    """Blocks of the language model."""
    max_tokens: int = 256
    """Longest text in tokens, begin and end token included."""
    teacher_queries: int = 8_000
    """English queries with soft targets."""
    language: LanguageConfig = field(
        default_factory=lambda: LanguageConfig(
            pretrain=LoopConfig(steps=300),
            warm=LoopConfig(steps=1000, evaluate_every=250),
            bind=LoopConfig(steps=800, floor=0.1, evaluate_every=100),
            tune=LoopConfig(steps=600, evaluate_every=100, checkpoint_every=100),
        )
    )
    """Recipe of the text tower."""
    align: AlignConfig = field(
        default_factory=lambda: AlignConfig(
            first=LoopConfig(steps=1500, floor=0.25),
            crowds=LoopConfig(steps=700, floor=0.25, evaluate_every=100, checkpoint_every=100),
            third=LoopConfig(steps=1100, evaluate_every=100, checkpoint_every=100),
        )
    )
    """Recipe of stage 2."""
    scenes: int = 8_000
    """Scenes whose captions stage 2 reads."""
    wordings: int = 4
    """Captions of each scene, the first in English."""


@dataclass(frozen=True)
class Material:
    """Data of all stages."""

    emoji: list[Emoji]
    pool: TextPool
    scene_pool: list[int]
    cache: Path


def gather_material(cache: Path) -> Material:
    """Fetch the packages and read names, keywords and descriptions."""
    cache.mkdir(parents=True, exist_ok=True)
    emoji = load_emoji(cache)
    return Material(emoji, TextPool(emoji, load_descriptions(emoji)), scene_pool(emoji), cache)


def language_corpus(material: Material, rng: np.random.Generator) -> Iterator[str]:
    """Texts for the tokenizer and pre-training: names and descriptions twice, keywords, queries, scenes."""
    pool = material.pool
    for texts, times in ((pool.names, 2), (pool.keywords, 1), (pool.descriptions, 2)):
        for text in texts:
            yield from [text.text] * times
    yield from (text.text for text in pool.sample(40_000, rng))
    for wording in range(1500):
        scene = sample_scene(material.scene_pool, rng, objects=(2, 8))
        for language in SCENE_LANGUAGES:
            yield caption(scene, material.emoji, language=language, wording=wording)


def new_language_model(config: NanoConfig) -> BidirectionalLlama:
    """The untrained language model, the same for a given seed."""
    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=8 * config.width // 3,
        num_hidden_layers=config.layers,
        num_attention_heads=config.width // 32,
        num_key_value_heads=config.width // 32,
        head_dim=32,
    )
    model = BidirectionalLlama(shape)
    torch.nn.init.normal_(model.embed_tokens.weight, std=0.02)
    return model


def train_language(run: Run, material: Material, config: NanoConfig) -> BidirectionalLlama:
    """Tokenizer, pre-training and stage 1; finished parts are skipped.

    Leaves ``tokenizer.json`` and ``prototypes.safetensors`` in the run folder.
    """
    tokenizer_path = run.folder / "tokenizer.json"
    corpus = list(language_corpus(material, np.random.default_rng([config.seed, 1])))
    if not tokenizer_path.exists():
        begun = time.monotonic()
        tokenizer = build_tokenizer(corpus, vocab_size=config.vocab_size)
        write_atomic(tokenizer_path, tokenizer.to_str(pretty=True), alone=True)
        run.finish("tokenizer", seconds=time.monotonic() - begun)
    encoder = text_encoder(run, config)
    if (found := encoder.tokenizer.get_vocab_size()) > config.vocab_size:
        raise RunError(
            f"{tokenizer_path} has {found} tokens, expected at most {config.vocab_size}. "
            "Choose another --out folder, or delete this one."
        )
    noisy = text_encoder(run, config, dropout=0.1)
    model = new_language_model(config)
    pretrain(run, model, encoder, corpus, config.language)
    teacher = ask_teacher(
        material.emoji, material.pool, queries=config.teacher_queries, seed=config.seed, cache=run.folder
    )
    stage = ContrastiveStage(material.emoji, material.pool, teacher, material.scene_pool)
    prototypes = Prototypes(len(material.emoji), config.width)
    tune_embeddings(run, model, prototypes, (encoder, noisy), stage, config.language)
    save_file({"prototypes": prototypes.weight.detach()}, run.folder / "prototypes.safetensors")
    bind_places(run, model, prototypes, encoder, stage, config.language)
    tune_model(run, model, prototypes, (encoder, noisy), stage, config.language)
    return model


def text_encoder(run: Run, config: NanoConfig, *, dropout: float | None = None) -> TextEncoder:
    """The run's tokenizer with nano's text rules."""
    return TextEncoder.from_file(run.folder / "tokenizer.json", max_tokens=config.max_tokens, dropout=dropout)


def train_images(
    run: Run, material: Material, config: NanoConfig
) -> tuple[ImageSide, PlaceHead, Gallery, Gallery]:
    """First parts of stage 2, which need the prototypes only and may run beside the rest of stage 1."""
    saved = load_file(run.folder / "prototypes.safetensors", device=str(torch.get_default_device()))
    prototypes, first_size = saved["prototypes"], config.align.first_size
    small_side = new_image_side(config, size=first_size)
    small, small_held = load_galleries(material, size=first_size)
    train_vision(run, small_side, prototypes, small, small_held, config.align)
    gallery, held = load_galleries(material, size=config.align.vision.image_size)
    image_side = new_image_side(config, size=config.align.vision.image_size)
    image_side.grow_from(small_side)
    stage = CrowdStage(prototypes, gallery, held, material.scene_pool, config.align)
    head = train_vision_on_scenes(run, image_side, stage)
    return image_side, head, gallery, held


def new_image_side(config: NanoConfig, *, size: int) -> ImageSide:
    """The untrained vision tower for images of ``size`` pixels, the same for a given seed."""
    torch.manual_seed(config.seed)
    return ImageSide(replace(config.align.vision, image_size=size), config.width)


def load_galleries(material: Material, *, size: int) -> tuple[Gallery, Gallery]:
    """Drawings to train on, and those of a style never trained on."""
    emoji, cache = material.emoji, material.cache
    trained = load_artwork(emoji, cache, size=size)
    held = load_artwork(emoji, cache, styles=("openmoji",), size=size)
    return Gallery(trained, len(emoji)), Gallery(held, len(emoji))


def read_captions(
    run: Run, material: Material, model: BidirectionalLlama, config: NanoConfig
) -> tuple[TextFeatures, SceneFeatures]:
    """Cached features of the captions of stage 2, and of some held-out scenes."""
    model.requires_grad_(False)
    encoder = text_encoder(run, config)
    texts = cache_texts(model, encoder, material.pool, run.folder / "features-texts.safetensors")

    def cached(name: str, count: int, wordings: int, seed: int) -> SceneFeatures:
        path, pool = run.folder / f"features-{name}.safetensors", material.scene_pool
        shape = {"count": count, "wordings": wordings, "seed": seed}
        return cache_scenes(model, encoder, material.emoji, pool, path, **shape)

    scenes = cached("scenes", config.scenes, config.wordings, config.seed)
    scenes.held = cached("held", 300, 1, config.seed + 1)
    return texts, scenes


def train_nano(
    run: Run, material: Material, config: NanoConfig
) -> tuple[BidirectionalLlama, ImageSide, TextAdapter]:
    """All stages up to the trained parts; finished ones are skipped."""
    model = train_language(run, material, config)
    texts, scenes = read_captions(run, material, model, config)
    side, head, gallery, held = train_images(run, material, config)
    torch.manual_seed(config.seed)
    adapter = identity_adapter(config.width, config.width)
    align(run, side, adapter, AlignStage(gallery, held, texts, scenes, config.align, head))
    return model, side, adapter
