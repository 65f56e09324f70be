"""Last part of stage 2: image tower and adapter learn from the frozen language model's cached features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.train.core.device import tensor_of
from llm2clip.train.core.losses import candidate_loss
from llm2clip.train.core.trainer import Run, Trainee, train_loop
from llm2clip.train.nano.image_batches import (
    AlignConfig,
    Gallery,
    ImageSide,
    ScenePainter,
    embed_drawings,
    embed_scenes,
    hit_rate,
    image_scores,
    parameter_groups,
)
from llm2clip.train.nano.text_features import SceneFeatures, TextFeatures
from llm2clip.train.nano.vision_tower import PlaceHead, named_loss


def identity_adapter(width: int, dim: int) -> TextAdapter:
    """The adapter, initialised near the identity: residual branches zero, last layer orthonormal."""
    adapter = TextAdapter(width, dim)
    final = f"adaptor.{len(adapter.adaptor) - 1}"
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if ".fn.3." in name or name == f"{final}.bias":
                parameter.zero_()
            elif name == f"{final}.weight":
                parameter.copy_(torch.eye(dim, width))
    return adapter


@dataclass
class AlignStage:
    """Third part of stage 2: batches and losses."""

    gallery: Gallery
    held: Gallery
    texts: TextFeatures
    scenes: SceneFeatures
    config: AlignConfig
    head: PlaceHead
    """From the second part; keeps predicting the object in each cell."""

    def __post_init__(self) -> None:
        self._painter = ScenePainter(self.gallery)

    def losses(
        self, image_side: ImageSide, adapter: TextAdapter, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """The losses of one batch.

        Emoji and scenes pass the tower together, so that the running averages of batch normalisation fit both.
        """
        chosen, images = self.gallery.batch(self.config.emoji_batch, rng)
        rows = rng.choice(len(self.scenes.scenes), self.config.scene_batch, replace=False)
        scenes = [self.scenes.scenes[row] for row in rows]
        embedded, grid = image_side.with_grid(torch.cat((images, self._painter.draw(scenes, rng))))
        embedded = F.normalize(embedded, dim=-1)
        losses = self._emoji_losses(embedded, adapter, chosen, rng)
        losses["scene"] = self._scene_loss(embedded[len(chosen) :], adapter, rows, rng)
        centroids = adapter(self.texts.centroids).detach()
        seen = self.head(grid[len(chosen) :])
        losses["named"] = named_loss(seen, scenes, centroids, scale=self.config.scale)
        total = losses["find"] + losses["scene"] + losses["named"]
        total = total + 0.5 * (losses["caption"] + losses["words"]) + self.config.pull * losses["away"]
        return {"loss": total, **losses}

    def _emoji_losses(
        self, embedded: Tensor, adapter: TextAdapter, chosen: NDArray[np.int64], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Emoji against the centroids of all captions, and against one caption each, in any language.

        A caption also has to find its image among the scenes. Further captions have to find their image's centroid,
        which brings the languages together.
        """
        emoji, own, scale = embedded[: len(chosen)], torch.arange(len(chosen)), self.config.scale
        captions = F.normalize(adapter(self.texts.draw(chosen, rng)), dim=-1)
        there = candidate_loss(emoji, captions, own, scale=scale)
        back = candidate_loss(captions, embedded, own, scale=scale)
        centroids, index = adapter(self.texts.centroids), tensor_of(chosen)
        named = rng.choice(len(self.texts.centroids), self.config.caption_batch)
        words = adapter(self.texts.draw(named, rng))
        return {
            "find": candidate_loss(emoji, centroids, index, scale=scale),
            "away": (1 - F.cosine_similarity(emoji, centroids[index].detach())).mean(),
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


def align(run: Run, image_side: ImageSide, adapter: TextAdapter, stage: AlignStage) -> None:
    """Third part: emoji and scenes against the language model's features, through the adapter."""
    config = stage.config
    groups = [
        *parameter_groups(image_side, config.third_learning_rate, 0.05),
        *parameter_groups(stage.head, config.third_learning_rate, 0.05),
        *parameter_groups(adapter, config.adapter_rate, 0.05),
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        return stage.losses(image_side, adapter, rng)

    def evaluate() -> dict[str, float]:
        return align_scores(image_side, adapter, stage)

    trainee = Trainee({"image": image_side, "adapter": adapter, "head": stage.head}, optimizer)
    train_loop(run, "align", trainee, step, config=config.third, settings=config, evaluate=evaluate)


@torch.no_grad()
def align_scores(image_side: ImageSide, adapter: TextAdapter, stage: AlignStage) -> dict[str, float]:
    """Progress in percent: names of some languages -> images, and held-out scenes."""
    adapter.eval()
    scores = image_scores(
        image_side, F.normalize(adapter(stage.texts.centroids), dim=-1), stage.gallery, stage.held
    )
    for language in ("en", "zh", "hi"):
        owners, features = stage.texts.names(language)
        queries = F.normalize(adapter(features), dim=-1)
        for name, one in (("noto", stage.gallery), ("held", stage.held)):
            style = one.artwork.styles.index("noto") if name == "noto" else 0
            rows = np.flatnonzero(one.artwork.style == style)
            embedded = embed_drawings(image_side, one.artwork, rows)
            position = torch.full((len(stage.gallery.by_emoji),), -1)
            position[tensor_of(one.artwork.emoji[rows])] = torch.arange(len(rows))
            similarity = queries @ embedded.T
            own = similarity.gather(1, position[owners][:, None])[:, 0]
            scores[f"{name}_{language}"] = hit_rate(similarity, own)
    scores |= _scene_scores(image_side, adapter, stage)
    adapter.train()
    return scores


def _scene_scores(image_side: ImageSide, adapter: TextAdapter, stage: AlignStage) -> dict[str, float]:
    held = stage.scenes.held
    if held is None:
        return {}
    embedded = embed_scenes(image_side, held.scenes, stage.gallery, np.random.default_rng(3))
    captions = F.normalize(adapter(held.captions[:, 0].float()), dim=-1)
    similarity = captions @ embedded.T
    own = similarity.diagonal()
    scores = {"scene_r1": hit_rate(similarity, own)}
    for number, kind in enumerate(("swap", "last")):
        twins = F.normalize(adapter(held.twins[:, number, 0].float()), dim=-1)
        scores[kind] = 100 * float((own > (twins * embedded).sum(1)).float().mean())
    return scores
