"""Progress measures of nano's language model in stage 1."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.train.core.text_states import TextEncoder
from llm2clip.train.nano.caption_batches import ContrastiveStage, Prototypes
from llm2clip.train.synthetic.scenes import caption, last_twin, sample_scene, swap_twin


@torch.no_grad()
def text_scores(
    model: BidirectionalLlama, prototypes: Prototypes, encoder: TextEncoder, stage: ContrastiveStage
) -> dict[str, float]:
    """Progress of stage 1 in percent: name -> prototype R@1 by language, mean cosine to it, twins distinguished."""
    anchors = nn.functional.normalize(prototypes.weight, dim=-1)
    scores: dict[str, float] = {}
    rows = np.random.default_rng(1).choice(len(stage.emoji), min(500, len(stage.emoji)), replace=False)
    for language in ("en", "zh", "es", "ar", "hi", "th"):
        named = [i for i in rows if language in stage.emoji[i].names]
        if not named:
            continue
        features = encoder.pool(model, [stage.emoji[i].names[language] for i in named])
        cosines = nn.functional.normalize(features, dim=-1) @ anchors.T
        own = cosines[torch.arange(len(named)), torch.tensor(named)]
        scores[language] = 100 * float((cosines.argmax(1) == torch.tensor(named)).float().mean())
        scores[f"{language}_cos"] = 100 * float(own.mean())
    if len(model.layers):
        rng = np.random.default_rng(2)
        for name, twin_of in (("swap", swap_twin), ("last", lambda s, r: last_twin(s, stage.scene_pool, r))):
            scenes = [sample_scene(stage.scene_pool, rng) for _ in range(100)]
            triples = [(s, s, twin_of(s, rng)) for s in scenes]
            texts = [
                caption(scene, stage.emoji, wording=wording)
                for wording, column in ((0, 0), (1, 1), (1, 2))
                for scene in (triple[column] for triple in triples)
            ]
            query, right, wrong = nn.functional.normalize(encoder.pool(model, texts), dim=-1).split(
                len(scenes)
            )
            told = (query * right).sum(1) > (query * wrong).sum(1)
            scores[name] = 100 * float(told.float().mean())
    return scores
