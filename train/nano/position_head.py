"""Training targets for positions: which object stands where, for sentences and tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.train.core.device import tensor_of
from llm2clip.train.core.losses import candidate_loss
from llm2clip.train.core.text_states import SentenceStates
from llm2clip.train.nano.scene_targets import SceneTargets
from llm2clip.train.synthetic.phrases import CELLS
from llm2clip.train.synthetic.scenes import Scene


@dataclass
class SceneBatch:
    """Scenes and a caption of each."""

    scenes: list[Scene] = field(default_factory=list)
    """What each caption tells, in its order."""
    captions: list[list[str]] = field(default_factory=list)
    """Sentences of each caption."""


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


def wake_blocks(model: BidirectionalLlama) -> None:
    """Give silenced blocks small random outputs: where all are zero, neither learns to use the other's."""
    for block in model.layers:
        nn.init.normal_(block.self_attn.o_proj.weight, std=0.01)  # type: ignore[union-attr, arg-type]
        nn.init.normal_(block.mlp.down_proj.weight, std=0.01)  # type: ignore[union-attr, arg-type]
