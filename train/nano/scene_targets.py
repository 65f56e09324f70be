"""Targets that teach both towers what is where, composed from the prototypes of a scene's objects.

A scene's target is the sum of its objects' prototypes, each multiplied by the gate of its place, and of the background
colour's vector. Gates keep a fixed random half of the dimensions: the same emoji in two places has cosine 1/2, and a
swap of two objects moves the target by as much as a replacement. Gates and colours are drawn, not learned, so both
towers can learn from the same targets at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm2clip.train.core.device import tensor_of
from llm2clip.train.core.losses import candidate_loss
from llm2clip.train.core.text_states import SentenceStates
from llm2clip.train.nano.caption_batches import SceneBatch
from llm2clip.train.synthetic.phrases import CELLS, COLOURS
from llm2clip.train.synthetic.scenes import Scene

COLOUR_WEIGHT = 0.4
"""Length of the background's vector, where all objects together have about 1."""


class SceneTargets:
    """Targets of scenes, from prototypes and a seed."""

    def __init__(self, prototypes_ED: Tensor, *, seed: int) -> None:
        """Draw gates and colours for prototypes of shape (emoji, D), of any norm."""
        rng = np.random.default_rng([seed, 31])
        width = prototypes_ED.shape[1]
        self.prototypes_ED = F.normalize(prototypes_ED.detach(), dim=-1)
        gates = np.stack([rng.permutation(width) < width // 2 for _ in range(CELLS)])
        self.gates_CD = tensor_of(gates.astype(np.float32) * np.float32(2**0.5))
        colours = rng.standard_normal((len(COLOURS), width)).astype(np.float32)
        self.colours_KD = COLOUR_WEIGHT * F.normalize(tensor_of(colours), dim=-1)

    def placed(self, objects: Sequence[int], cells: Sequence[int]) -> Tensor:
        """Targets of single objects in their places. Shape: (n, D), float32, not unit length."""
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


class SentenceHead(nn.Module):
    """What a scene's sentence and each of its tokens must know; used in training only.

    The states of a sentence, summed, must mean its object in its place. Every token of it must know both before the
    last block: without that the model takes a caption for a bag of words and never begins to bind.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.place = nn.Linear(width, CELLS)
        self.thing = nn.Linear(width, width)

    def forward(
        self, read: SentenceStates, batch: SceneBatch, composed: SceneTargets, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Losses of sentences and of tokens; openings do not count.

        Args:
            read: Of the batch's captions.
            batch: Scenes and captions.
            composed: Gives prototypes and gates.
            scale: Factor on the cosines.
        """
        counts = np.array([len(scene.objects) for scene in batch.scenes])
        lengths = np.array([len(text) for text in batch.captions])
        told = np.concatenate(
            [np.arange(end - count, end) for end, count in zip(lengths.cumsum(), counts, strict=True)]
        )
        objects = np.concatenate([scene.objects for scene in batch.scenes])
        cells = np.concatenate([scene.cells for scene in batch.scenes])
        known, which = np.unique(objects, return_inverse=True)
        candidates = composed.placed(np.repeat(known, CELLS).tolist(), [*range(CELLS)] * len(known))
        placed = candidate_loss(
            read.sentences[tensor_of(told)], candidates, tensor_of(which * CELLS + cells), scale=scale
        )
        number = np.full(int(lengths.sum()), -1)
        number[told] = np.arange(len(told))
        of_token = tensor_of(number)[read.owners]
        counted = of_token >= 0
        tokens, of_token = self.norm(read.tokens[counted]), of_token[counted]
        place = nn.functional.cross_entropy(self.place(tokens), tensor_of(cells)[of_token])
        thing = candidate_loss(
            self.thing(tokens),
            composed.prototypes_ED[tensor_of(known)],
            tensor_of(which)[of_token],
            scale=scale,
        )
        return placed, place + 0.5 * thing
