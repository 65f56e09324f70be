"""Stage 2 proper: vision tower and adapter learn from the frozen language model's cached features."""

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
    SCENE_SIDES,
    AlignConfig,
    Gallery,
    ImageSide,
    ScenePainter,
    embed_drawings,
    embed_scenes,
    image_scores,
    parameter_groups,
    thumbnails_of_style,
)
from llm2clip.train.nano.text_features import SceneFeatures, TextFeatures
from llm2clip.train.nano.vision_tower import PlaceHead, named_loss


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


@dataclass
class AlignStage:
    """Third part of stage 2: what a batch is made of, and its losses."""

    gallery: Gallery
    held: Gallery
    texts: TextFeatures
    scenes: SceneFeatures
    config: AlignConfig
    head: PlaceHead
    """From the second part; goes on naming what stands where."""

    def __post_init__(self) -> None:
        self._painter = ScenePainter(self.gallery)

    def losses(
        self, image_side: ImageSide, adapter: TextAdapter, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """The losses of one batch.

        All images go through the tower together, so that batch normalisation sees in training what its running
        averages will stand for: emoji and scenes mixed.
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

        A caption has to find its image among the scenes too. Further captions have to find their image's centroid,
        so that the adapter brings the languages together where the frozen language model left them apart.
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
    """Third part: emoji and scenes against the language model's own features, through the adapter."""
    config = stage.config
    optimizer = torch.optim.AdamW(
        [
            *parameter_groups(image_side, config.third_learning_rate, 0.05),
            *parameter_groups(stage.head, config.third_learning_rate, 0.05),
            *parameter_groups(adapter, config.adapter_rate, 0.05),
        ],
        betas=(0.9, 0.98),
    )

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        return stage.losses(image_side, adapter, rng)

    train_loop(
        run,
        "align",
        Trainee({"image": image_side, "adapter": adapter, "head": stage.head}, optimizer),
        step,
        config=config.third,
        settings=config,
        evaluate=lambda: align_scores(image_side, adapter, stage),
    )


@torch.no_grad()
def align_scores(image_side: ImageSide, adapter: TextAdapter, stage: AlignStage) -> dict[str, float]:
    """Progress of the second part: names of some languages -> images, and scenes never trained on."""
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
            own = similarity.gather(1, position[owners][:, None])
            rank = (similarity >= own).sum(1)
            scores[f"{name}_{language}"] = 100 * float((rank <= 1).float().mean())
    scores |= _scene_scores(image_side, adapter, stage)
    adapter.train()
    return scores


def _scene_scores(image_side: ImageSide, adapter: TextAdapter, stage: AlignStage) -> dict[str, float]:
    held = stage.scenes.held
    if held is None:
        return {}
    noto = thumbnails_of_style(
        stage.gallery.artwork, "noto", len(stage.gallery.by_emoji), side=SCENE_SIDES[2]
    )
    embedded = embed_scenes(image_side, held.scenes, noto, np.random.default_rng(3))
    captions = F.normalize(adapter(held.captions[:, 0].float()), dim=-1)
    similarity = captions @ embedded.T
    own = similarity.diagonal()
    scores = {"scene_r1": 100 * float(((similarity >= own[:, None]).sum(1) <= 1).float().mean())}
    for number, kind in enumerate(("swap", "last")):
        twins = F.normalize(adapter(held.twins[:, number, 0].float()), dim=-1)
        scores[kind] = 100 * float((own > (twins * embedded).sum(1)).float().mean())
    return scores
