"""Stage 2: the vision tower and the adapter learn from the frozen language model's cached features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.encoders.adapter import TextAdapter
from llm2clip.encoders.vision import NanoVisionConfig, NanoVisionTower
from llm2clip.train.augment import augment_drawings, augment_scenes
from llm2clip.train.device import tensor_of
from llm2clip.train.emoji import ART_SIZE, Artwork
from llm2clip.train.features import SceneFeatures, TextFeatures
from llm2clip.train.losses import candidate_loss
from llm2clip.train.run import LoopConfig, Run, Trainee, train_loop
from llm2clip.train.scenes import Thumbnails, draw_scene, thumbnails

PIXEL_MEAN = 0.5
PIXEL_STD = 0.5
SCENE_SIDES = (17, 19, 20, 21)
"""Sides in pixels at which objects appear in a 64-pixel scene."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Recipe of stage 2."""

    first: LoopConfig
    """Single emoji against the pictures' prototypes; the adapter waits."""
    second: LoopConfig
    """Emoji and scenes against captions, through the adapter."""
    batch: int = 256
    """Emoji pictures per step of the first part, all of different emoji."""
    emoji_batch: int = 176
    """Emoji pictures per step of the second part."""
    scene_batch: int = 80
    """Scene pictures per step of the second part."""
    caption_batch: int = 768
    """Captions per step that are drawn to their pictures' centroids, in the second part."""
    vision: NanoVisionConfig = field(
        default_factory=lambda: NanoVisionConfig(image_size=ART_SIZE, batch_norm=True)
    )
    """Shape of the vision tower."""
    learning_rate: float = 2e-3
    """Peak rate of the vision tower in the first part."""
    second_learning_rate: float = 1e-3
    """Peak rate of the vision tower in the second part."""
    adapter_rate: float = 5e-4
    """Peak rate of the adapter."""
    scale: float = 14.0
    """Factor on cosines between a picture and all captions' centroids."""
    scene_scale: float = 50.0
    """Factor on cosines between scenes and their captions."""


class PictureSide(nn.Module):
    """Vision tower and projection, as one trainee."""

    def __init__(self, config: NanoVisionConfig, dim: int) -> None:
        super().__init__()
        self.vision = NanoVisionTower(config)
        self.projection = nn.Linear(self.vision.width, dim, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Shape: (B, 3, S, S) in 0..1 -> (B, dim), not normalised."""
        embedded: Tensor = self.projection(self.states(pictures))
        return embedded

    def states(self, pictures: Tensor) -> Tensor:
        """Pooled states before the projection. Shape: (B, 3, S, S) in 0..1 -> (B, width)."""
        pixels = ((pictures - PIXEL_MEAN) / PIXEL_STD).contiguous(memory_format=torch.channels_last)
        pooled: Tensor = self.vision(pixels)
        return pooled


class Gallery:
    """Drawings to train on."""

    def __init__(self, artwork: Artwork, emoji_count: int) -> None:
        self.artwork = artwork
        self.by_emoji = [np.flatnonzero(artwork.emoji == index) for index in range(emoji_count)]

    def batch(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Tensor]:
        """Pictures of ``count`` different emoji, each in a random style. Shapes: (count,), (count, 3, S, S)."""
        chosen = rng.choice(len(self.by_emoji), count, replace=False)
        rows = np.array([rng.choice(self.by_emoji[index]) for index in chosen])
        return chosen, augment_drawings(self.artwork.pixels[rows], rng)


def identity_adapter(width: int, dim: int) -> TextAdapter:
    """The adapter, begun near the identity: residual branches silent, last layer orthonormal."""
    adapter = TextAdapter(width, dim)
    final = f"adaptor.{len(adapter.adaptor) - 1}"
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if ".fn.3." in name or name == f"{final}.bias":
                parameter.zero_()
            elif name == f"{final}.weight":
                parameter.copy_(torch.eye(dim, width))
    return adapter


def parameter_groups(module: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
    """AdamW groups: weight decay on matrices and kernels, none on biases, gains and other vectors."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "lr": rate, "weight_decay": decay},
        {"params": vectors, "lr": rate, "weight_decay": 0.0},
    ]


def train_vision(
    run: Run,
    picture_side: PictureSide,
    anchors_ED: Tensor,
    gallery: Gallery,
    held: Gallery,
    config: AlignConfig,
) -> None:
    """First part: every emoji picture finds its emoji's prototype among all, every prototype its picture in the batch.

    Args:
        run: Where history and checkpoints go.
        picture_side: Trained in place.
        anchors_ED: Shape: (emoji, dim), frozen prototypes.
        gallery: Drawings of the trained styles.
        held: Drawings of another style, for the progress report only.
        config: Recipe.
    """
    anchors = F.normalize(anchors_ED, dim=-1)
    optimizer = torch.optim.AdamW(
        parameter_groups(picture_side, config.learning_rate, 0.05), betas=(0.9, 0.98)
    )

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        chosen, pictures = gallery.batch(config.batch, rng)
        embedded = picture_side(pictures)
        index = tensor_of(chosen)
        find = candidate_loss(embedded, anchors, index, scale=config.scale)
        found = candidate_loss(anchors[index], embedded, torch.arange(len(chosen)), scale=config.scale)
        return {"loss": find + 0.5 * found, "find": find}

    train_loop(
        run,
        "vision",
        Trainee({"picture": picture_side}, optimizer),
        step,
        config=config.first,
        evaluate=lambda: picture_scores(picture_side, anchors, gallery, held),
    )


@dataclass
class AlignStage:
    """Second part of stage 2: what a batch is made of, and its losses."""

    gallery: Gallery
    held: Gallery
    texts: TextFeatures
    scenes: SceneFeatures
    sizes: Sequence[Thumbnails]
    config: AlignConfig

    @classmethod
    def create(
        cls, gallery: Gallery, held: Gallery, texts: TextFeatures, scenes: SceneFeatures, config: AlignConfig
    ) -> AlignStage:
        """Prepare thumbnails for scenes."""
        sizes = [thumbnails(gallery.artwork, len(gallery.by_emoji), side=side) for side in SCENE_SIDES]
        return cls(gallery, held, texts, scenes, sizes, config)

    def losses(
        self, picture_side: PictureSide, adapter: TextAdapter, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """The losses of one batch.

        All pictures go through the tower together, so that batch normalisation sees in training what its running
        averages will stand for: emoji and scenes mixed.
        """
        chosen, pictures = self.gallery.batch(self.config.emoji_batch, rng)
        rows, scenes = self._draw_scenes(rng)
        embedded = F.normalize(picture_side(torch.cat((pictures, scenes))), dim=-1)
        losses = self._emoji_losses(embedded, adapter, chosen, rng)
        losses["scene"] = self._scene_loss(embedded[len(chosen) :], adapter, rows, rng)
        total = losses["find"] + 0.5 * (losses["caption"] + losses["words"]) + losses["scene"]
        return {"loss": total, **losses}

    def _draw_scenes(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], Tensor]:
        rows = rng.choice(len(self.scenes.scenes), self.config.scene_batch, replace=False)
        drawings = self.sizes[int(rng.integers(len(self.sizes)))]
        drawn = np.stack([draw_scene(self.scenes.scenes[row], drawings, rng, size=ART_SIZE) for row in rows])
        return rows, augment_scenes(drawn, rng)

    def _emoji_losses(
        self, embedded: Tensor, adapter: TextAdapter, chosen: NDArray[np.int64], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Emoji against the centroids of all captions, and against one caption each, in any language.

        A caption has to find its picture among the scenes too. Further captions have to find their picture's centroid,
        so that the adapter brings the languages together where the frozen language model left them apart.
        """
        emoji, own, scale = embedded[: len(chosen)], torch.arange(len(chosen)), self.config.scale
        captions = F.normalize(adapter(self.texts.draw(chosen, rng)), dim=-1)
        there = candidate_loss(emoji, captions, own, scale=scale)
        back = candidate_loss(captions, embedded, own, scale=scale)
        centroids = adapter(self.texts.centroids)
        named = rng.choice(len(self.texts.centroids), self.config.caption_batch)
        words = adapter(self.texts.draw(named, rng))
        return {
            "find": candidate_loss(emoji, centroids, tensor_of(chosen), scale=scale),
            "caption": 0.5 * (there + back),
            "words": candidate_loss(words, centroids, tensor_of(named), scale=scale),
        }

    def _scene_loss(
        self, embedded: Tensor, adapter: TextAdapter, rows: NDArray[np.int64], rng: np.random.Generator
    ) -> Tensor:
        """Scenes against the captions of the batch and their twins, and captions against scenes."""
        captions, twins = self.scenes.draw(rows, rng)
        texts = F.normalize(adapter(torch.cat((captions, twins))), dim=-1)
        own, scale = torch.arange(len(rows)), self.config.scene_scale
        there = candidate_loss(embedded, texts, own, scale=scale)
        back = candidate_loss(texts[: len(rows)], embedded, own, scale=scale)
        return 0.5 * (there + back)


def align(run: Run, picture_side: PictureSide, adapter: TextAdapter, stage: AlignStage) -> None:
    """Second part: emoji and scenes against the language model's own features, through the adapter."""
    config = stage.config
    optimizer = torch.optim.AdamW(
        [
            *parameter_groups(picture_side, config.second_learning_rate, 0.05),
            *parameter_groups(adapter, config.adapter_rate, 0.05),
        ],
        betas=(0.9, 0.98),
    )

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        return stage.losses(picture_side, adapter, rng)

    train_loop(
        run,
        "align",
        Trainee({"picture": picture_side, "adapter": adapter}, optimizer),
        step,
        config=config.second,
        evaluate=lambda: align_scores(picture_side, adapter, stage),
    )


@torch.no_grad()
def embed_drawings(picture_side: PictureSide, artwork: Artwork, rows: NDArray[np.int64]) -> Tensor:
    """Unit embeddings of drawings on white, unchanged. Shape: (len(rows), dim)."""
    picture_side.eval()
    parts = [F.normalize(picture_side(part), dim=-1) for part in plain_drawings(artwork, rows).split(256)]
    picture_side.train()
    return torch.cat(parts)


def plain_drawings(artwork: Artwork, rows: NDArray[np.int64]) -> Tensor:
    """Drawings on white, unchanged. Shape: (len(rows), 3, S, S), float32 in 0..1."""
    rgba = tensor_of(artwork.pixels[rows]).permute(0, 3, 1, 2).float() / 255
    return rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]


def picture_scores(
    picture_side: PictureSide, anchors_ED: Tensor, gallery: Gallery, held: Gallery
) -> dict[str, float]:
    """Progress in percent: prototype or centroid -> picture R@1 and R@5 by inner product, and the mean own cosine.

    ``noto`` is the shipped style, ``held`` one never trained on.
    """
    scores: dict[str, float] = {}
    for name, one in (("noto", gallery), ("held", held)):
        style = one.artwork.styles.index("noto") if name == "noto" else 0
        rows = np.flatnonzero(one.artwork.style == style)
        owners = tensor_of(one.artwork.emoji[rows])
        embedded = embed_drawings(picture_side, one.artwork, rows)
        similarity = anchors_ED[owners] @ embedded.T
        own = similarity.diagonal()
        rank = (similarity >= own[:, None]).sum(1)
        scores |= {
            f"{name}_r1": 100 * float((rank <= 1).float().mean()),
            f"{name}_r5": 100 * float((rank <= 5).float().mean()),
            f"{name}_cos": 100 * float(own.mean()),
        }
    return scores


@torch.no_grad()
def align_scores(picture_side: PictureSide, adapter: TextAdapter, stage: AlignStage) -> dict[str, float]:
    """Progress of the second part: names of some languages -> pictures, and scenes never trained on."""
    adapter.eval()
    scores = picture_scores(
        picture_side, F.normalize(adapter(stage.texts.centroids), dim=-1), stage.gallery, stage.held
    )
    for language in ("en", "zh", "hi"):
        owners, features = stage.texts.names(language)
        queries = F.normalize(adapter(features), dim=-1)
        for name, one in (("noto", stage.gallery), ("held", stage.held)):
            style = one.artwork.styles.index("noto") if name == "noto" else 0
            rows = np.flatnonzero(one.artwork.style == style)
            embedded = embed_drawings(picture_side, one.artwork, rows)
            position = torch.full((len(stage.gallery.by_emoji),), -1)
            position[tensor_of(one.artwork.emoji[rows])] = torch.arange(len(rows))
            similarity = queries @ embedded.T
            own = similarity.gather(1, position[owners][:, None])
            rank = (similarity >= own).sum(1)
            scores[f"{name}_{language}"] = 100 * float((rank <= 1).float().mean())
    scores |= _scene_scores(picture_side, adapter, stage)
    adapter.train()
    return scores


def _scene_scores(picture_side: PictureSide, adapter: TextAdapter, stage: AlignStage) -> dict[str, float]:
    held = stage.scenes.held
    if held is None:
        return {}
    rng = np.random.default_rng(3)
    noto = thumbnails_of_style(stage.gallery.artwork, "noto", len(stage.gallery.by_emoji), side=20)
    drawn = np.stack([draw_scene(scene, noto, rng, size=ART_SIZE) for scene in held.scenes])
    picture_side.eval()
    pictures = tensor_of(drawn).permute(0, 3, 1, 2).float() / 255
    embedded = F.normalize(torch.cat([picture_side(part) for part in pictures.split(256)]), dim=-1)
    picture_side.train()
    captions = F.normalize(adapter(held.captions[:, 0].float()), dim=-1)
    similarity = captions @ embedded.T
    own = similarity.diagonal()
    scores = {"scene_r1": 100 * float(((similarity >= own[:, None]).sum(1) <= 1).float().mean())}
    for number, kind in enumerate(("swap", "last")):
        twins = F.normalize(adapter(held.twins[:, number, 0].float()), dim=-1)
        scores[kind] = 100 * float((own > (twins * embedded).sum(1)).float().mean())
    return scores


def thumbnails_of_style(artwork: Artwork, style: str, emoji_count: int, *, side: int) -> Thumbnails:
    """Thumbnails of one style only."""
    rows = artwork.style == artwork.styles.index(style)
    return thumbnails(
        Artwork(artwork.pixels[rows], artwork.emoji[rows], artwork.style[rows], artwork.styles),
        emoji_count,
        side=side,
    )
