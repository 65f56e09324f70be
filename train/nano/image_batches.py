"""Image data of stage 2: its configuration, image batches and progress scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.encoders.layers.nano_vision import NanoVisionConfig, NanoVisionTower
from llm2clip.train.core.device import tensor_of
from llm2clip.train.core.trainer import LoopConfig
from llm2clip.train.synthetic.augment import augment_drawings, augment_scenes
from llm2clip.train.synthetic.emoji import ART_SIZE, Artwork
from llm2clip.train.synthetic.scenes import Scene, draw_scene, thumbnails

PIXEL_MEAN = 0.5
PIXEL_STD = 0.5
SCENE_SIDES = (26, 28, 30, 31)
"""Sides in pixels at which objects appear in a 96-pixel scene."""
SCENE_OBJECTS = (2, 8)
"""Fewest and most objects of a scene trained on; a single one is an emoji image."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Recipe of stage 2."""

    first: LoopConfig
    """Single emoji against the images' prototypes; the adapter waits."""
    crowds: LoopConfig
    """Emoji against prototypes and scenes against what they are composed of; the adapter waits."""
    third: LoopConfig
    """Emoji and scenes against captions, through the adapter."""
    batch: int = 256
    """Emoji images per step of the first part, all of different emoji."""
    crowd_emoji_batch: int = 144
    """Emoji images per step of the second part."""
    crowd_scene_batch: int = 112
    """Scene images per step of the second part."""
    emoji_batch: int = 192
    """Emoji images per step of the last part."""
    scene_batch: int = 64
    """Scene images per step of the last part."""
    caption_batch: int = 768
    """Captions per step that are drawn to their images' centroids, in the last part."""
    first_size: int = 64
    """Side in pixels of the first part's images; small ones are quicker to learn the shapes from."""
    vision: NanoVisionConfig = field(
        default_factory=lambda: NanoVisionConfig(image_size=ART_SIZE, batch_norm=True)
    )
    """Shape of the vision tower."""
    learning_rate: float = 2e-3
    """Peak rate of the vision tower in the first part."""
    crowd_learning_rate: float = 1.5e-3
    """Peak rate of the vision tower in the second part."""
    third_learning_rate: float = 1e-3
    """Peak rate of the vision tower in the last part."""
    adapter_rate: float = 5e-4
    """Peak rate of the adapter."""
    scale: float = 14.0
    """Factor on cosines between an image and all captions' centroids."""
    composition_scale: float = 20.0
    """Factor on cosines between scenes and what they are composed of."""
    scene_scale: float = 50.0
    """Factor on cosines between scenes and their captions."""
    pull: float = 3.0
    """Weight of one minus the cosine between an image and its target."""


class ImageSide(nn.Module):
    """Image tower and projection, trained together."""

    def __init__(self, config: NanoVisionConfig, dim: int) -> None:
        super().__init__()
        self.vision = NanoVisionTower(config)
        self.projection = nn.Linear(self.vision.width, dim, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Shape: (B, 3, S, S) in 0..1 -> (B, dim), not normalised."""
        embedded: Tensor = self.projection(self.vision(_pixels(images)))
        return embedded

    def with_grid(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and the tower's grid. Shapes: (B, 3, S, S) -> (B, dim), (B, width, grid, grid)."""
        tokens = self.vision(_pixels(images), pooled=False)
        grid = tokens[:, 1:].transpose(1, 2).unflatten(2, (self.vision.config.grid, -1))
        return self.projection(self.vision.norm(tokens[:, 0])), grid

    @torch.no_grad()
    def grow_from(self, smaller: ImageSide) -> None:
        """Take over the weights of the same tower for smaller images; positions are interpolated."""
        weights = smaller.state_dict()
        position = weights["vision.position"]
        old, new = smaller.vision.config.grid, self.vision.config.grid
        cells = position[:, 1:].transpose(1, 2).unflatten(2, (old, old))
        grown = F.interpolate(cells, size=(new, new), mode="bicubic").flatten(2).transpose(1, 2)
        self.load_state_dict(weights | {"vision.position": torch.cat((position[:, :1], grown), dim=1)})


def _pixels(images: Tensor) -> Tensor:
    return ((images - PIXEL_MEAN) / PIXEL_STD).contiguous(memory_format=torch.channels_last)


def parameter_groups(module: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
    """AdamW groups: weight decay on matrices and kernels only."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "lr": rate, "weight_decay": decay},
        {"params": vectors, "lr": rate, "weight_decay": 0.0},
    ]


class Gallery:
    """Drawings to train on."""

    def __init__(self, artwork: Artwork, emoji_count: int) -> None:
        self.artwork = artwork
        self.by_emoji = [np.flatnonzero(artwork.emoji == index) for index in range(emoji_count)]

    def batch(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Tensor]:
        """Images of ``count`` different emoji, each in a random style. Shapes: (count,), (count, 3, S, S)."""
        chosen = rng.choice(len(self.by_emoji), count, replace=False)
        rows = np.array([rng.choice(self.by_emoji[index]) for index in chosen])
        return chosen, augment_drawings(self.artwork.pixels[rows], rng)


class ScenePainter:
    """Draws scenes in a batch, at one of several sizes of object."""

    def __init__(self, gallery: Gallery) -> None:
        self._sizes = [thumbnails(gallery.artwork, len(gallery.by_emoji), side=side) for side in SCENE_SIDES]

    def draw(self, scenes: Sequence[Scene], rng: np.random.Generator) -> Tensor:
        """Shape: (len(scenes), 3, S, S), float32 in 0..1, slightly recoloured."""
        drawings = self._sizes[int(rng.integers(len(self._sizes)))]
        drawn = np.stack([draw_scene(scene, drawings, rng, size=ART_SIZE) for scene in scenes])
        return augment_scenes(drawn, rng)


@torch.no_grad()
def embed_scenes(
    image_side: ImageSide, scenes: Sequence[Scene], gallery: Gallery, rng: np.random.Generator
) -> Tensor:
    """Unit embeddings of scenes, drawn in the style ``noto`` and not recoloured. Shape: (len(scenes), dim)."""
    art = gallery.artwork
    rows = art.style == art.styles.index("noto")
    noto = Artwork(art.pixels[rows], art.emoji[rows], art.style[rows], art.styles)
    drawings = thumbnails(noto, len(gallery.by_emoji), side=SCENE_SIDES[2])
    drawn = np.stack([draw_scene(scene, drawings, rng, size=ART_SIZE) for scene in scenes])
    return _embed(image_side, tensor_of(drawn).permute(0, 3, 1, 2).float() / 255)


@torch.no_grad()
def embed_drawings(image_side: ImageSide, artwork: Artwork, rows: NDArray[np.int64]) -> Tensor:
    """Unit embeddings of drawings on white, unchanged. Shape: (len(rows), dim)."""
    return _embed(image_side, plain_drawings(artwork, rows))


def plain_drawings(artwork: Artwork, rows: NDArray[np.int64]) -> Tensor:
    """Drawings on white, unchanged. Shape: (len(rows), 3, S, S), float32 in 0..1."""
    rgba = tensor_of(artwork.pixels[rows]).permute(0, 3, 1, 2).float() / 255
    return rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]


def _embed(image_side: ImageSide, images: Tensor) -> Tensor:
    image_side.eval()
    embedded = torch.cat([F.normalize(image_side(part), dim=-1) for part in images.split(256)])
    image_side.train()
    return embedded


def image_scores(
    image_side: ImageSide, anchors_ED: Tensor, gallery: Gallery, held: Gallery
) -> dict[str, float]:
    """Progress in percent: prototype or centroid -> image R@1 and R@5, and the mean cosine of pairs.

    ``noto`` is the shipped style, ``held`` one never trained on.
    """
    scores: dict[str, float] = {}
    for name, one in (("noto", gallery), ("held", held)):
        style = one.artwork.styles.index("noto") if name == "noto" else 0
        rows = np.flatnonzero(one.artwork.style == style)
        owners = tensor_of(one.artwork.emoji[rows])
        embedded = embed_drawings(image_side, one.artwork, rows)
        similarity = anchors_ED[owners] @ embedded.T
        own = similarity.diagonal()
        scores |= {f"{name}_r{k}": hit_rate(similarity, own, k=k) for k in (1, 5)}
        scores[f"{name}_cos"] = 100 * float(own.mean())
    return scores


def hit_rate(similarity: Tensor, own: Tensor, *, k: int = 1) -> float:
    """Percent of rows in which at most ``k`` similarities reach the row's own."""
    return 100 * float(((similarity >= own[:, None]).sum(1) <= k).float().mean())
