"""What ``llm2clip-train nano`` runs: from packages to an encoder folder, resuming where it stopped.

1. texts and their meanings, the trimmed text encoder, pairs of phrases and codes (``visual_words``);
2. goals of the texts: the teacher's vectors, and beside them where a closed-form fit of the pairs takes these vectors;
3. stage 1, ``cc``: the last blocks of the text encoder learn the goals (``text_stage``);
4. stage 2: the text encoder, frozen from here on, reads the phrases; adapter and projection in closed form;
5. export, and adapters for the controls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from llm2clip.encoders.layers.configs import AdapterConfig, LiteTowerConfig
from llm2clip.encoders.layers.efficientnet_lite import EfficientNetLite, LiteTower
from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.llm2clip.folder_config import Llm2ClipConfig
from llm2clip.encoders.llm2clip.save_load import save_llm2clip
from llm2clip.encoders.text.caption_tokenizer import TextReader, TextRules
from llm2clip.encoders.text.packed import pooled_states
from llm2clip.eval.runner.controls import CONTROLS_FILE, control_blocks, cut_blocks
from llm2clip.train.align.closed_form import CanonicalMaps, Matrix, Moments, fit_cca
from llm2clip.train.align.heads import before_last, set_last
from llm2clip.train.core.loop import train
from llm2clip.train.core.run_folder import Run
from llm2clip.train.nano.config import FitConfig, NanoConfig
from llm2clip.train.nano.e5_file import SentenceModel
from llm2clip.train.nano.material import Material, Pairs, make_pairs, with_translations
from llm2clip.train.nano.text_stage import FrozenStates, TextStage, put_back
from llm2clip.train.nano.texts import LANGUAGES, Text
from llm2clip.train.nano.use_teacher import UseTeacher

NOTE = (
    "photographs of everyday things, many languages, offline; weak on faces, text in images, counting, breeds"
)


def make_goals(texts: list[Text], pairs: Pairs, weights: Path, config: NanoConfig) -> NDArray[np.float16]:
    """What the text encoder has to say of the texts.

    The teacher's vector of their meanings, and beside it that vector as a fit of the pairs maps it to what things look
    like: so differences that can be seen count as much as all others.

    Returns:
        Shape: (texts, 512 + dim), unit rows.
    """
    teacher = UseTeacher(weights, weights.parent / "sp.model")
    log_stderr(f"asking the teacher about {len(texts):,} texts")
    meanings = list(dict.fromkeys(sentence for text in texts for sentence in text.meaning))
    found = teacher.encode(meanings)
    row = {meaning: number for number, meaning in enumerate(meanings)}
    means = np.stack([found[[row[sentence] for sentence in text.meaning]].mean(0) for text in texts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    ridge = replace(config.fit, text_ridge=config.fit.teacher_ridge)
    maps, _ = fit_pairs(teacher.encode(pairs.phrases), pairs, ridge)
    seen = maps.text(means)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    goals: NDArray[np.float16] = (np.concatenate([means, seen], axis=1) / np.sqrt(2)).astype(np.float16)
    return goals


def train_text(run: Run, material: Material, pairs: Pairs, config: NanoConfig) -> BertEncoder:
    """Stage 1; returns the text encoder, which is then frozen."""
    goals = run.folder / "goals.npy"
    if not goals.exists():
        made = make_goals(material.texts, pairs, material.teacher, config)
        with atomic_path(goals) as draft, draft.open("wb") as file:
            np.save(file, made)
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
        stage = TextStage(model, states, np.load(goals), config.text, seed=config.seed)
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
class Fitted:
    """Stage 2."""

    adapter: TextAdapter
    """Of the text encoder's states."""
    maps: CanonicalMaps
    """What its linear layer was taken from, and the projection of codes."""
    centre: Matrix
    """Mean code. Shape: (classes,)."""


def fit(language: BertEncoder, reader: TextReader, pairs: Pairs, config: FitConfig) -> Fitted:
    """Stage 2."""
    states = pooled_states(language, reader.rows(pairs.phrases), device=torch.device("cpu"))
    adapter = TextAdapter(states.shape[1], config.dim, blocks=0).eval()
    with torch.no_grad():
        features = before_last(adapter, states).numpy()
    maps, centre = fit_pairs(features, pairs, config)
    set_last(adapter, maps.text)
    return Fitted(adapter, maps, centre)


def fit_pairs(features: NDArray[np.float32], pairs: Pairs, config: FitConfig) -> tuple[CanonicalMaps, Matrix]:
    """Canonical correlation of texts and codes, and the mean code. Shape: (phrases, width)."""
    moments = Moments(pairs.codes.shape[1], features.shape[1])
    moments.add(pairs.codes.numpy(), features.astype(np.float64), pairs.weights)
    maps = fit_cca(moments, dim=config.dim, image_ridge=config.image_ridge, text_ridge=config.text_ridge)
    return maps, moments.means()[0]


def make_tower(vision: EfficientNetLite, config: NanoConfig) -> LiteTower:
    """The vision tower for inference, its centre still at zero."""
    trunk = vision.folded(classes=True)
    tower = LiteTower(LiteTowerConfig(trunk=trunk.config, sharpness=config.sharpness))
    tower.trunk = trunk
    return tower.eval()


def train_nano(run: Run, material: Material, config: NanoConfig) -> Path:
    """Both stages and the export; returns the encoder's folder."""
    tower = make_tower(material.vision, config)
    pairs = make_pairs(material, tower, config)
    language = train_text(run, material, pairs, config)
    reader = text_reader(material.language, config)
    translated = with_translations(pairs, material.words, weight=config.fit.translations)
    fitted = fit(language, reader, translated, config.fit)
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
    controls = {"no-cc": translated, "english-words": pairs}
    _save_controls(folder, language, reader, controls, config)
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
    folder: Path, language: BertEncoder, reader: TextReader, pairs: Mapping[str, Pairs], config: NanoConfig
) -> None:
    """Adapters fitted in the same way behind fewer blocks: before stage 1, and no block at all."""
    tensors: dict[str, Tensor] = {}
    prefix = "language_model."
    whole = {prefix + name: tensor for name, tensor in language.state_dict().items()}
    for name, of in pairs.items():
        keep = control_blocks(name, blocks=len(language.layers), trained=config.text.blocks)
        short = BertEncoder(replace(language.config, num_hidden_layers=keep)).eval()
        cut = cut_blocks(whole, name, keep=keep)
        short.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in cut.items()})
        fitted = fit(short, reader, of, config.fit)
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
