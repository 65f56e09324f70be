"""First parts of stage 2: the image tower learns from prototypes, with single emoji and with scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.train.core.device import tensor_of
from llm2clip.train.core.losses import candidate_loss
from llm2clip.train.core.trainer import Run, Trainee, train_loop
from llm2clip.train.nano.image_batches import (
    SCENE_OBJECTS,
    AlignConfig,
    Gallery,
    ImageSide,
    ScenePainter,
    embed_scenes,
    hit_rate,
    image_scores,
    parameter_groups,
)
from llm2clip.train.nano.scene_targets import SceneTargets
from llm2clip.train.synthetic.scenes import Scene, last_twin, move_twin, sample_scene, swap_twin


class PlaceHead(nn.Module):
    """Predicts the object in each of a scene's nine cells from the tower's grid; used in training only."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, dim)

    def forward(self, grid_BDGG: Tensor) -> Tensor:
        """Shape: (B, width, grid, grid) -> (B, 9, dim), not normalised."""
        cells = F.adaptive_avg_pool2d(grid_BDGG, 3).flatten(2).transpose(1, 2)
        seen: Tensor = self.projection(self.norm(cells))
        return seen


def train_vision(
    run: Run,
    image_side: ImageSide,
    anchors_ED: Tensor,
    gallery: Gallery,
    held: Gallery,
    config: AlignConfig,
) -> None:
    """First part: emoji image -> prototype among all, prototype -> image in the batch.

    ``anchors_ED`` are the frozen prototypes; ``held`` has another style, for the progress scores only.
    """
    anchors = F.normalize(anchors_ED, dim=-1)
    optimizer = torch.optim.AdamW(parameter_groups(image_side, config.learning_rate, 0.05), betas=(0.9, 0.98))

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        chosen, images = gallery.batch(config.batch, rng)
        embedded = image_side(images)
        index = tensor_of(chosen)
        find = candidate_loss(embedded, anchors, index, scale=config.scale)
        found = candidate_loss(anchors[index], embedded, torch.arange(len(chosen)), scale=config.scale)
        return {"loss": find + 0.5 * found, "find": find}

    def evaluate() -> dict[str, float]:
        return image_scores(image_side, anchors, gallery, held)

    trainee = Trainee({"image": image_side}, optimizer)
    train_loop(run, "vision", trainee, step, config=config.first, settings=config, evaluate=evaluate)


@dataclass
class CrowdStage:
    """Data of the second part of stage 2; ``anchors`` are the prototypes, ``held`` is for the scores only."""

    anchors: Tensor
    gallery: Gallery
    held: Gallery
    scene_pool: Sequence[int]
    config: AlignConfig

    def __post_init__(self) -> None:
        self.anchors = F.normalize(self.anchors, dim=-1)


def train_vision_on_scenes(run: Run, image_side: ImageSide, stage: CrowdStage) -> PlaceHead:
    """Second part: emoji against prototypes as before, scenes against their composed targets.

    A head on the tower's grid predicts the object in each cell, which teaches scenes far faster than their one vector;
    it is returned for the next part. Cosines of pairs are raised as well, for the sake of inner products.
    """
    config, anchors = stage.config, stage.anchors
    composed = SceneTargets(anchors, seed=run.seed)
    painter = ScenePainter(stage.gallery)
    torch.manual_seed(run.seed)
    head = PlaceHead(image_side.vision.width, anchors.shape[1])
    rate = config.crowd_learning_rate
    optimizer = torch.optim.AdamW(
        [*parameter_groups(image_side, rate, 0.05), *parameter_groups(head, rate, 0.05)], betas=(0.9, 0.98)
    )

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        chosen, images = stage.gallery.batch(config.crowd_emoji_batch, rng)
        count = config.crowd_scene_batch
        scenes = [sample_scene(stage.scene_pool, rng, objects=SCENE_OBJECTS) for _ in range(count)]
        embedded, grid = image_side.with_grid(torch.cat((images, painter.draw(scenes, rng))))
        embedded = F.normalize(embedded, dim=-1)
        named = named_loss(head(grid[len(chosen) :]), scenes, anchors, scale=config.scale)
        twins = [move_twin(scene, rng) for scene in scenes]
        twins += [last_twin(scene, stage.scene_pool, rng) for scene in scenes]
        targets, index, own = composed([*scenes, *twins]), tensor_of(chosen), torch.arange(len(scenes))
        emoji, crowds = embedded.split((len(chosen), len(scenes)))
        find = candidate_loss(emoji, anchors, index, scale=config.scale)
        found = candidate_loss(anchors[index], embedded, torch.arange(len(chosen)), scale=config.scale)
        parts = candidate_loss(crowds, targets, own, scale=config.composition_scale)
        back = candidate_loss(targets[own], embedded, own + len(chosen), scale=config.composition_scale)
        away = (1 - (embedded * torch.cat((anchors[index], targets[own]))).sum(1)).mean()
        total = find + parts + 0.5 * (found + back) + named + config.pull * away
        return {"loss": total, "find": find, "parts": parts, "named": named, "away": away}

    def evaluate() -> dict[str, float]:
        scores = image_scores(image_side, anchors, stage.gallery, stage.held)
        return scores | composed_scores(image_side, composed, stage.gallery, stage.scene_pool)

    trainee = Trainee({"image": image_side, "head": head}, optimizer)
    train_loop(run, "crowds", trainee, step, config=config.crowds, settings=config, evaluate=evaluate)
    return head


def named_loss(seen_B9D: Tensor, scenes: Sequence[Scene], anchors_ED: Tensor, *, scale: float) -> Tensor:
    """Cross-entropy of naming every object of every scene from its cell."""
    owners = tensor_of(np.repeat(np.arange(len(scenes)), [len(scene.objects) for scene in scenes]))
    cells = tensor_of(np.concatenate([scene.cells for scene in scenes]))
    objects = tensor_of(np.concatenate([scene.objects for scene in scenes]))
    return candidate_loss(seen_B9D[owners, cells], anchors_ED, objects, scale=scale)


@torch.no_grad()
def composed_scores(
    image_side: ImageSide, composed: SceneTargets, gallery: Gallery, scene_pool: Sequence[int]
) -> dict[str, float]:
    """Progress in percent on 500 new scenes in the shipped style: own target ranked first, and above its twins."""
    rng = np.random.default_rng(4)
    scenes = [sample_scene(scene_pool, rng) for _ in range(500)]
    embedded = embed_scenes(image_side, scenes, gallery, rng)
    targets = composed(scenes)
    own = (embedded * targets).sum(1)
    scores = {"scene_r1": hit_rate(targets @ embedded.T, own), "scene_cos": 100 * float(own.mean())}
    for kind, twins in (
        ("swap", [swap_twin(scene, rng) for scene in scenes]),
        ("last", [last_twin(scene, scene_pool, rng) for scene in scenes]),
    ):
        scores[kind] = 100 * float((own > (composed(twins) * embedded).sum(1)).float().mean())
    return scores
