"""Stage 2 before there are text features: the vision tower learns from prototypes, alone and in crowds."""

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
    SCENE_SIDES,
    AlignConfig,
    Gallery,
    ImageSide,
    ScenePainter,
    embed_scenes,
    image_scores,
    parameter_groups,
    thumbnails_of_style,
)
from llm2clip.train.nano.scene_targets import SceneTargets
from llm2clip.train.synthetic.scenes import Scene, last_twin, move_twin, sample_scene, swap_twin


class PlaceHead(nn.Module):
    """What the tower's grid says stands in each of a scene's nine cells; used in training only."""

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
    """First part: every emoji image finds its emoji's prototype among all, every prototype its image in the batch.

    Args:
        run: Where history and checkpoints go.
        image_side: Trained in place.
        anchors_ED: Shape: (emoji, dim), frozen prototypes.
        gallery: Drawings of the trained styles.
        held: Drawings of another style, for the progress report only.
        config: Recipe.
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

    train_loop(
        run,
        "vision",
        Trainee({"image": image_side}, optimizer),
        step,
        config=config.first,
        settings=config,
        evaluate=lambda: image_scores(image_side, anchors, gallery, held),
    )


@dataclass
class CrowdStage:
    """What the second part of stage 2 works on."""

    anchors: Tensor
    """Shape: (emoji, dim), frozen prototypes."""
    gallery: Gallery
    """Drawings of the trained styles."""
    held: Gallery
    """Drawings of another style, for the progress report only."""
    scene_pool: Sequence[int]
    """Emoji that may stand in a scene."""
    config: AlignConfig
    """Recipe."""

    def __post_init__(self) -> None:
        self.anchors = F.normalize(self.anchors, dim=-1)


def train_vision_on_scenes(run: Run, image_side: ImageSide, stage: CrowdStage) -> PlaceHead:
    """Second part: emoji find their prototypes as before, and scenes what they are composed of.

    A head on the tower's grid has to name what stands in each place, which teaches objects in a crowd far faster than
    the scene's one vector does; it is returned for the next part and then thrown away. Cosines to the own target are
    drawn up as well: inner products rank well only where an image has little in its embedding that no text accounts
    for.
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
        scenes = [
            sample_scene(stage.scene_pool, rng, objects=SCENE_OBJECTS)
            for _ in range(config.crowd_scene_batch)
        ]
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
    """Every object of every scene is named by what was seen in its cell."""
    owners = tensor_of(np.repeat(np.arange(len(scenes)), [len(scene.objects) for scene in scenes]))
    cells = tensor_of(np.concatenate([scene.cells for scene in scenes]))
    objects = tensor_of(np.concatenate([scene.objects for scene in scenes]))
    return candidate_loss(seen_B9D[owners, cells], anchors_ED, objects, scale=scale)


@torch.no_grad()
def composed_scores(
    image_side: ImageSide, composed: SceneTargets, gallery: Gallery, scene_pool: Sequence[int]
) -> dict[str, float]:
    """Progress in percent on 500 new scenes in the shipped style: own target ranked first, and above its twins'."""
    rng = np.random.default_rng(4)
    noto = thumbnails_of_style(gallery.artwork, "noto", len(gallery.by_emoji), side=SCENE_SIDES[2])
    scenes = [sample_scene(scene_pool, rng) for _ in range(500)]
    embedded = embed_scenes(image_side, scenes, noto, rng)
    targets = composed(scenes)
    own = (embedded * targets).sum(1)
    scores = {
        "scene_r1": 100 * float(((targets @ embedded.T >= own[:, None]).sum(1) <= 1).float().mean()),
        "scene_cos": 100 * float(own.mean()),
    }
    for kind, twins in (
        ("swap", [swap_twin(scene, rng) for scene in scenes]),
        ("last", [last_twin(scene, scene_pool, rng) for scene in scenes]),
    ):
        scores[kind] = 100 * float((own > (composed(twins) * embedded).sum(1)).float().mean())
    return scores
