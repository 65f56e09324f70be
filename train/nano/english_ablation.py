"""The paper's claim on small ground: stage 2 in English only, beside three controls, all from the same start.

Rows: the contrastively tuned language model, frozen, with English captions (``nano-english``); the same with the
pre-trained language model that never saw the contrastive stage (``no-cc``); text towers trained with the images, as
CLIP does, on English only (``clip-english``) and on Chinese only (``clip-chinese``).

All rows start from the same pre-trained vision tower, kept frozen, with a new projection, as stage 2 of LLM2CLIP starts
from a pre-trained CLIP. That tower comes from the first part of nano's stage 2, which knew the images' prototypes, so
its states suit the tuned language model; the comparison between languages within a row is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.train.core.device import tensor_of
from llm2clip.train.core.losses import clip_loss
from llm2clip.train.core.text_states import TextEncoder
from llm2clip.train.core.trainer import LoopConfig, Run, Trainee, train_loop
from llm2clip.train.nano.align import identity_adapter
from llm2clip.train.nano.image_batches import Gallery, ImageSide, parameter_groups, plain_drawings
from llm2clip.train.synthetic.augment import augment_drawings
from llm2clip.train.synthetic.emoji import Emoji

LANGUAGES_SHOWN = ("en", "zh", "es", "de", "ja", "ar", "hi")


@dataclass(frozen=True, kw_only=True)
class EnglishConfig:
    """Recipe of one row."""

    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=120, evaluate_every=120, checkpoint_every=40)
    )
    """Length and schedule."""
    batch: int = 512
    """Images per step, all of different emoji."""
    copies: int = 4
    """Augmented images of each drawing."""
    rate: float = 1e-3
    """Peak rate of what a row trains."""
    scale: float = 14.0
    """Factor on cosines."""


@dataclass(frozen=True)
class ImageStates:
    """What the frozen vision tower says about images, before the projection."""

    training: Tensor
    """Shape: (images, width), of augmented drawings."""
    by_emoji: tuple[NDArray[np.int64], ...]
    """Rows of ``training`` that show each emoji."""
    measured: dict[str, tuple[NDArray[np.int64], Tensor]]
    """By style: emoji and states of its drawings on white. Shapes: (n,), (n, width)."""


@torch.no_grad()
def read_images(
    image_side: ImageSide, galleries: tuple[Gallery, Gallery], copies: int, rng: np.random.Generator
) -> ImageStates:
    """Pass every drawing through the tower: augmented ``copies`` times for training, plain for measuring.

    Args:
        image_side: Its vision tower is read, its projection is not.
        galleries: Drawings to train on, and drawings of the held-out style.
        copies: Augmented images of each drawing.
        rng: Source of the augmentation.
    """
    image_side.eval()
    artwork = galleries[0].artwork
    blocks = [
        np.arange(start, min(start + 256, len(artwork.emoji))) for start in range(0, len(artwork.emoji), 256)
    ]
    order = [block for _ in range(copies) for block in blocks]
    states = [image_side.states(augment_drawings(artwork.pixels[block], rng)) for block in order]
    owners = artwork.emoji[np.concatenate(order)]
    by_emoji = tuple(np.flatnonzero(owners == index) for index in range(len(galleries[0].by_emoji)))
    measured = {}
    for style, gallery in (("noto", galleries[0]), ("openmoji", galleries[1])):
        rows = np.flatnonzero(gallery.artwork.style == gallery.artwork.styles.index(style))
        plain = [image_side.states(part) for part in plain_drawings(gallery.artwork, rows).split(256)]
        measured[style] = (gallery.artwork.emoji[rows], torch.cat(plain))
    return ImageStates(torch.cat(states), by_emoji, measured)


class FrozenTower(nn.Module):
    """A frozen language model with a trained adapter; what it has read once it remembers."""

    def __init__(self, model: BidirectionalLlama, encoder: TextEncoder) -> None:
        super().__init__()
        width = model.config.hidden_size
        self.adapter = identity_adapter(width, width)
        self._model = [model.requires_grad_(False)]  # in a list: not a part of what is trained and saved
        self._encoder = encoder
        self._known: dict[str, Tensor] = {}

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Shape: len(texts) -> (len(texts), dim), not normalised."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            with torch.no_grad():
                self._known.update(zip(new, self._encoder.pool(self._model[0], new), strict=True))
        adapted: Tensor = self.adapter(torch.stack([self._known[text] for text in texts]))
        return adapted


class TrainedTower(nn.Module):
    """A language model that is trained with the images, as CLIP's text tower is."""

    def __init__(self, model: BidirectionalLlama, encoder: TextEncoder) -> None:
        super().__init__()
        self.model = model
        self._encoder = encoder

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Shape: len(texts) -> (len(texts), dim), not normalised."""
        return self._encoder.pool(self.model, texts)


def train_row(
    run: Run,
    row: tuple[str, nn.Module, str],
    emoji: Sequence[Emoji],
    photos: ImageStates,
    config: EnglishConfig,
) -> dict[str, float]:
    """Train one row's text side and projection with captions of one language, and measure it in several.

    Args:
        run: Where history and checkpoints go; a finished row is only measured.
        row: Name of the row and of its stage; its text tower (texts to features, not normalised); the only language of
            its captions.
        emoji: All emoji; captions are their names and keywords.
        photos: States of the frozen vision tower.
        config: Recipe.

    Returns:
        Name -> image R@1 and R@5 in percent, per language, on Noto and on the held-out style.
    """
    name, tower, language = row
    torch.manual_seed(run.seed)
    projection = nn.Linear(photos.training.shape[1], photos.training.shape[1], bias=False)
    groups = [*parameter_groups(projection, config.rate, 0.01), *parameter_groups(tower, config.rate, 0.01)]

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        chosen = rng.choice(len(emoji), min(config.batch, len(emoji)), replace=False)
        rows = np.array([rng.choice(photos.by_emoji[index]) for index in chosen])
        images = F.normalize(projection(photos.training[tensor_of(rows)]), dim=-1)
        texts = F.normalize(tower([_caption(emoji[index], language, rng) for index in chosen]), dim=-1)
        return {"loss": clip_loss(images, texts, logit_scale=config.scale)}

    trainee = Trainee({"projection": projection, "text": tower}, torch.optim.AdamW(groups, betas=(0.9, 0.98)))
    train_loop(run, name, trainee, step, config=config.loop, settings=config, evaluate=None)
    return measure_row(projection, tower, emoji, photos)


def _caption(item: Emoji, language: str, rng: np.random.Generator) -> str:
    words = item.keywords.get(language, ())
    if not words or rng.random() < 0.5:
        return item.names[language]
    return words[int(rng.integers(len(words)))]


@torch.no_grad()
def measure_row(
    projection: nn.Module, tower: nn.Module, emoji: Sequence[Emoji], images: ImageStates
) -> dict[str, float]:
    """Name -> image R@1 and R@5 by inner product over one gallery of each style, ties counted against us."""
    scores: dict[str, float] = {}
    for language in LANGUAGES_SHOWN:
        named = [index for index, item in enumerate(emoji) if language in item.names]
        if not named:
            continue
        texts = F.normalize(tower([emoji[index].names[language] for index in named]), dim=-1)
        place = {index: row for row, index in enumerate(named)}
        for style, (owners, states) in images.measured.items():
            shown = [row for row, owner in enumerate(owners) if int(owner) in place]
            queries = texts[tensor_of(np.array([place[int(owners[row])] for row in shown]))]
            similarity = queries @ F.normalize(projection(states), dim=-1).T
            own = similarity.gather(1, tensor_of(np.array(shown))[:, None])
            rank = (similarity >= own).sum(1)
            scores[f"{style}_{language}_r1"] = 100 * float((rank <= 1).float().mean())
            scores[f"{style}_{language}_r5"] = 100 * float((rank <= 5).float().mean())
    return scores


def compare_rows(
    run: Run,
    models: dict[str, BidirectionalLlama],
    encoder: TextEncoder,
    emoji: Sequence[Emoji],
    images: ImageStates,
    config: EnglishConfig,
) -> dict[str, dict[str, float]]:
    """All four rows.

    Args:
        run: Run folder.
        models: ``"cc"``: the tuned language model; ``"raw"``: the pre-trained one; ``"english"`` and ``"chinese"``: two
            untrained ones of the same shape and start.
        encoder: Text rules.
        emoji: All emoji.
        images: States of the frozen vision tower.
        config: Recipe of each row.
    """
    towers: dict[str, tuple[nn.Module, str]] = {
        "nano-english": (FrozenTower(models["cc"], encoder), "en"),
        "no-cc": (FrozenTower(models["raw"], encoder), "en"),
        "clip-english": (TrainedTower(models["english"], encoder), "en"),
        "clip-chinese": (TrainedTower(models["chinese"], encoder), "zh"),
    }
    return {
        name: train_row(run, (name, tower, language), emoji, images, config)
        for name, (tower, language) in towers.items()
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """The comparison as Markdown: R@1/R@5 in percent."""
    lines = []
    for style in ("noto", "openmoji"):
        lines += [
            f"| {style} | " + " | ".join(LANGUAGES_SHOWN) + " |",
            "|---" * (len(LANGUAGES_SHOWN) + 1) + "|",
        ]
        for name, scores in rows.items():
            cells = [
                f"{scores[f'{style}_{lang}_r1']:.1f}/{scores[f'{style}_{lang}_r5']:.1f}"
                for lang in LANGUAGES_SHOWN
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
