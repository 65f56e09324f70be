"""The paper's claim on small ground: stage 2 in English only, beside three controls, all from the same start.

Rows: the contrastively tuned language model frozen and English captions (``nano-english``); the same with the
pre-trained language model that never saw the contrastive stage (``no-cc``); text towers trained with the pictures, as
CLIP does, on English only (``clip-english``) and on Chinese only (``clip-chinese``). Every row sees the same pictures
for the same number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.encoders.llama import BidirectionalLlama
from llm2clip.encoders.vision import NanoVisionConfig
from llm2clip.train.align import Gallery, PictureSide, embed_drawings, identity_adapter, parameter_groups
from llm2clip.train.device import tensor_of
from llm2clip.train.emoji import ART_SIZE, Emoji
from llm2clip.train.encode import TextEncoder
from llm2clip.train.losses import clip_loss
from llm2clip.train.run import LoopConfig, Run, Trainee, train_loop

LANGUAGES_SHOWN = ("en", "zh", "es", "de", "ja", "ar", "hi")


@dataclass(frozen=True, kw_only=True)
class EnglishConfig:
    """Recipe of one row."""

    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=250, evaluate_every=125, checkpoint_every=50)
    )
    """Length and schedule."""
    batch: int = 192
    """Pictures per step, all of different emoji."""
    vision: NanoVisionConfig = field(
        default_factory=lambda: NanoVisionConfig(image_size=ART_SIZE, batch_norm=True)
    )
    """Shape of the vision tower."""
    learning_rate: float = 2e-3
    """Peak rate of what is trained from scratch."""
    scale: float = 14.0
    """Factor on cosines."""


TextTower = Callable[[Sequence[str]], Tensor]


def frozen_tower(model: BidirectionalLlama, encoder: TextEncoder, adapter: nn.Module) -> TextTower:
    """A frozen language model with a trained adapter."""
    model.requires_grad_(False)

    def read(texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            features = encoder.pool(model, texts)
        adapted: Tensor = adapter(features)
        return adapted

    return read


def train_row(
    run: Run,
    name: str,
    emoji: Sequence[Emoji],
    galleries: tuple[Gallery, Gallery],
    tower: TextTower,
    trained: nn.Module,
    *,
    language: str,
    config: EnglishConfig,
) -> dict[str, float]:
    """Train one row and measure it.

    Args:
        run: Where history and checkpoints go; a finished row is only measured.
        name: Name of the row and of its stage.
        emoji: All emoji; captions are their names and keywords.
        galleries: Drawings to train on, and drawings of the held-out style.
        tower: Texts to features, not normalised.
        trained: What is trained on the text side.
        language: The only language of the captions.
        config: Recipe.

    Returns:
        Name -> picture R@1 and R@5 in percent, per language, on Noto and on the held-out style.
    """
    torch.manual_seed(run.seed)
    picture_side = PictureSide(config.vision, 192)
    groups = [
        *parameter_groups(picture_side, config.learning_rate, 0.05),
        *parameter_groups(trained, 1e-3, 0.01),
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        chosen, pictures = galleries[0].batch(config.batch, rng)
        texts = [_caption(emoji[index], language, rng) for index in chosen]
        return {
            "loss": clip_loss(
                F.normalize(picture_side(pictures), dim=-1),
                F.normalize(tower(texts), dim=-1),
                logit_scale=config.scale,
            )
        }

    trainee = Trainee({"picture": picture_side, "text": trained}, optimizer)
    train_loop(run, name, trainee, step, config=config.loop, evaluate=None)
    return measure_row(picture_side, tower, emoji, galleries)


def _caption(item: Emoji, language: str, rng: np.random.Generator) -> str:
    words = item.keywords.get(language, ())
    if not words or rng.random() < 0.6:
        return item.names[language]
    return ", ".join(words[int(i)] for i in rng.choice(len(words), min(3, len(words)), replace=False))


@torch.no_grad()
def measure_row(
    picture_side: PictureSide, tower: TextTower, emoji: Sequence[Emoji], galleries: tuple[Gallery, Gallery]
) -> dict[str, float]:
    """Name -> picture R@1 and R@5 by inner product over one gallery of each style, ties counted against us."""
    scores: dict[str, float] = {}
    queries = {
        language: F.normalize(tower([e.names[language] for e in emoji]), dim=-1)
        for language in LANGUAGES_SHOWN
    }
    for style, gallery in (("noto", galleries[0]), ("openmoji", galleries[1])):
        artwork = gallery.artwork
        rows = np.flatnonzero(artwork.style == artwork.styles.index(style))
        embedded = embed_drawings(picture_side, artwork, rows)
        owners = tensor_of(artwork.emoji[rows])
        for language, texts in queries.items():
            similarity = texts[owners] @ embedded.T
            rank = (similarity >= similarity.diagonal()[:, None]).sum(1)
            scores[f"{style}_{language}_r1"] = 100 * float((rank <= 1).float().mean())
            scores[f"{style}_{language}_r5"] = 100 * float((rank <= 5).float().mean())
    return scores


def compare_rows(
    run: Run,
    models: dict[str, BidirectionalLlama],
    encoder: TextEncoder,
    emoji: Sequence[Emoji],
    galleries: tuple[Gallery, Gallery],
    config: EnglishConfig,
) -> dict[str, dict[str, float]]:
    """All four rows.

    Args:
        run: Run folder.
        models: ``"cc"``: the tuned language model; ``"raw"``: the pre-trained one; ``"new"``: an untrained one of
            the same shape, whose state both CLIP-style rows start from.
        encoder: Text rules.
        emoji: All emoji.
        galleries: Trained drawings and held-out drawings.
        config: Recipe of each row.
    """
    width = models["cc"].config.hidden_size
    rows: dict[str, dict[str, float]] = {}
    for name, which in (("nano-english", "cc"), ("no-cc", "raw")):
        adapter = identity_adapter(width, width)
        tower = frozen_tower(models[which], encoder, adapter)
        rows[name] = train_row(run, name, emoji, galleries, tower, adapter, language="en", config=config)
    fresh = {key: value.clone() for key, value in models["new"].state_dict().items()}
    for name, language in (("clip-english", "en"), ("clip-chinese", "zh")):
        models["new"].load_state_dict(fresh)
        rows[name] = train_row(
            run,
            name,
            emoji,
            galleries,
            lambda texts: encoder.pool(models["new"], texts),
            models["new"],
            language=language,
            config=config,
        )
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """The comparison as Markdown: R@1/R@5 in percent."""
    lines = []
    for style in ("noto", "openmoji"):
        lines += [
            f"{style} | " + " | ".join(LANGUAGES_SHOWN),
            " | ".join(["---"] * (len(LANGUAGES_SHOWN) + 1)),
        ]
        for name, scores in rows.items():
            cells = [
                f"{scores[f'{style}_{lang}_r1']:.1f}/{scores[f'{style}_{lang}_r5']:.1f}"
                for lang in LANGUAGES_SHOWN
            ]
            lines.append(f"{name} | " + " | ".join(cells))
        lines.append("")
    return "\n".join(lines)
