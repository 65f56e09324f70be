"""What a scene means, composed from what its objects mean: the targets that teach both towers what stands where.

A scene's target is the sum of its objects' prototypes, each seen through the gate of its place, and of the background
colour's vector. Gates keep a fixed random half of the dimensions, so a scene stays close to the names of what it
shows (the same emoji in two places has cosine 1/2), while swapping two objects moves the target by as much as
replacing one. Gates and colours are drawn, not learned, so that the text tower and the image tower can learn from the
same targets at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm2clip.train.core.device import tensor_of
from llm2clip.train.synthetic.phrases import CELLS, COLOURS
from llm2clip.train.synthetic.scenes import Scene

COLOUR_WEIGHT = 0.4
"""Length of the background's vector, where all objects together have about 1."""


class SceneTargets:
    """Targets of scenes, from prototypes and a seed."""

    def __init__(self, prototypes_ED: Tensor, *, seed: int) -> None:
        """Draw gates and colours.

        Args:
            prototypes_ED: Shape: (emoji, D), any norm; not changed by training.
            seed: Seed of gates and colours.
        """
        rng = np.random.default_rng([seed, 31])
        width = prototypes_ED.shape[1]
        self.prototypes_ED = F.normalize(prototypes_ED.detach(), dim=-1)
        gates = np.stack([rng.permutation(width) < width // 2 for _ in range(CELLS)])
        self.gates_CD = tensor_of(gates.astype(np.float32) * np.float32(2**0.5))
        colours = rng.standard_normal((len(COLOURS), width)).astype(np.float32)
        self.colours_KD = COLOUR_WEIGHT * F.normalize(tensor_of(colours), dim=-1)

    def placed(self, objects: Sequence[int], cells: Sequence[int]) -> Tensor:
        """What single objects in their places mean. Shape: (n, D), float32, not unit length."""
        prototypes = self.prototypes_ED[tensor_of(np.array(objects))]
        return prototypes * self.gates_CD[tensor_of(np.array(cells))]

    def __call__(self, scenes: Sequence[Scene]) -> Tensor:
        """Targets. Shape: (len(scenes), D), float32, unit rows."""
        counts = np.array([len(scene.objects) for scene in scenes])
        owners = tensor_of(np.repeat(np.arange(len(scenes)), counts))
        seen = self.placed(
            [item for scene in scenes for item in scene.objects],
            [cell for scene in scenes for cell in scene.cells],
        )
        summed = torch.zeros(len(scenes), seen.shape[1]).index_add(0, owners, seen)
        colours = self.colours_KD[[scene.background for scene in scenes]]
        return F.normalize(summed / tensor_of(counts.astype(np.float32)).sqrt()[:, None] + colours, dim=-1)
