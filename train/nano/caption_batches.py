"""Data of stage 1: texts, scenes and prototypes, and how batches are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.train.core.device import tensor_of
from llm2clip.train.core.trainer import LoopConfig
from llm2clip.train.synthetic.phrases import SCENE_LANGUAGES
from llm2clip.train.synthetic.scenes import Scene, last_twin, move_twin, sample_scene, sentences
from llm2clip.train.synthetic.texts import Text, TextPool, target_matrix

if TYPE_CHECKING:
    from llm2clip.train.synthetic.emoji import Emoji


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Recipe of stage 1."""

    pretrain: LoopConfig
    """Next-token pre-training."""
    warm: LoopConfig
    """Contrastive fine-tuning of the token embeddings alone, the blocks passing through."""
    bind: LoopConfig
    """The blocks alone learn which object is in which cell, on sentences of one or two objects."""
    tune: LoopConfig
    """Contrastive fine-tuning of the whole model."""
    pretrain_batch: int = 256
    """Texts per pre-training step."""
    warm_batch: int = 2048
    """Short texts per step of the first contrastive part."""
    tune_batch: int = 384
    """Short texts per step of the third."""
    bind_scenes: int = 72
    """Scenes of one or two objects per step of the second."""
    long_scenes: int = 6
    """Scenes of four to eight objects per step."""
    short_scenes: int = 40
    """Scenes of one or two objects per step, without an opening sentence."""
    taught: float = 0.15
    """Part of the short texts that are English queries with the sentence encoder's soft targets."""
    scale: float = 12.0
    """Factor on cosines to images' prototypes. Low on purpose: it asks for a wide margin, so that plain inner
    products rank well afterwards."""
    scene_scale: float = 50.0
    """Factor on cosines between scene captions (LLM2CLIP's stage 1 uses 50). High on purpose: a scene and its twin
    share almost every word."""
    composition_scale: float = 20.0
    """Factor on cosines between scene captions and what the scenes are composed of."""
    same_language: float = 0.6
    """Fraction of the scenes with both captions in one language; the rest has two languages."""
    neighbour_share: float = 0.1
    """Part of every target that goes to images of similar meaning."""


@dataclass(frozen=True)
class Teacher:
    """Soft targets of a sentence encoder for English texts."""

    neighbours: NDArray[np.float32]
    """Shape: (images, images), rows sum to 1: how alike two images' English names and keywords are."""
    queries: list[Text]
    """English queries."""
    query_targets: NDArray[np.float16]
    """Shape: (queries, images), rows sum to 1."""


@dataclass
class SceneBatch:
    """Scenes and a caption of each."""

    scenes: list[Scene] = field(default_factory=list)
    """One for each caption, objects in its order."""
    captions: list[list[str]] = field(default_factory=list)
    """Sentences of each caption."""


class Prototypes(nn.Module):
    """One learned direction per image."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) / width**0.5)


class ContrastiveStage:
    """Batches of stage 1: texts of one image are positives, texts of different images negatives.

    Short texts are scored against a learned prototype of every image (supervised SimCSE with all images as the batch).
    Scene captions are scored against each other across wordings and languages, with a twin as hard negative, and
    against the composed targets of their scenes.
    """

    def __init__(
        self, emoji: Sequence[Emoji], pool: TextPool, teacher: Teacher, scene_pool: Sequence[int]
    ) -> None:
        self.emoji = emoji
        self.pool = pool
        self.teacher = teacher
        self.scene_pool = scene_pool

    def short_batch(
        self, count: int, rng: np.random.Generator, config: LanguageConfig
    ) -> tuple[list[str], Tensor]:
        """Texts and their target distribution. Shape of the target: (count, images)."""
        taught = int(count * config.taught) if self.teacher.queries else 0
        texts = self.pool.sample(count - taught, rng)
        target = target_matrix(texts, len(self.emoji))
        share = config.neighbour_share
        target = (1 - share) * target + share * _spread(texts, self.teacher.neighbours)
        if taught:
            picked = rng.choice(len(self.teacher.queries), taught)
            queries = [self.teacher.queries[i] for i in picked]
            own = target_matrix(queries, len(self.emoji))
            target = np.concatenate(
                (target, 0.5 * own + 0.5 * self.teacher.query_targets[picked].astype(np.float32))
            )
            texts += queries
        return [text.text for text in texts], tensor_of(target)

    def told_scenes(self, count: int, objects: tuple[int, int], rng: np.random.Generator) -> SceneBatch:
        """Scenes with one caption each, in any language."""
        batch = SceneBatch()
        for _ in range(count):
            scene = sample_scene(self.scene_pool, rng, objects=objects)
            batch.scenes.append(scene)
            batch.captions.append(self._tell(scene, _language(rng), int(rng.integers(6))))
        return batch

    def _tell(self, scene: Scene, language: str, wording: int) -> list[str]:
        """Sentences of a caption; one or two objects have no opening."""
        opening = len(scene.objects) > 2
        return sentences(scene, self.emoji, language=language, wording=wording, opening=opening)

    def scene_batch(
        self, count: int, objects: tuple[int, int], rng: np.random.Generator, config: LanguageConfig
    ) -> SceneBatch:
        """Scenes by threes: a scene, the same in another wording, and a twin in that wording."""
        batch = SceneBatch()
        for _ in range(count):
            scene = sample_scene(self.scene_pool, rng, objects=objects)
            twin = move_twin(scene, rng) if rng.random() < 0.6 else last_twin(scene, self.scene_pool, rng)
            first = _language(rng)
            second = first if rng.random() < config.same_language else _language(rng)
            words = rng.integers(6, size=2)
            shuffled, shuffled_twin = _reorder(scene, twin, rng)
            batch.scenes += [scene, shuffled, shuffled_twin]
            batch.captions.append(self._tell(scene, first, int(words[0])))
            batch.captions += [self._tell(one, second, int(words[1])) for one in (shuffled, shuffled_twin)]
        return batch


def _spread(texts: Sequence[Text], neighbours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of the neighbourhoods of the images each text fits. Shape: (texts, images)."""
    return np.stack([neighbours[list(text.images[:16])].mean(axis=0) for text in texts])


def _language(rng: np.random.Generator) -> str:
    return "en" if rng.random() < 0.35 else SCENE_LANGUAGES[int(rng.integers(len(SCENE_LANGUAGES)))]


def _reorder(scene: Scene, twin: Scene, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Both with the same new order of objects in half of the cases: order is not part of the image."""
    if rng.random() < 0.5:
        return scene, twin
    order = rng.permutation(len(scene.objects))

    def told(one: Scene) -> Scene:
        objects, cells = (tuple(values[i] for i in order) for values in (one.objects, one.cells))
        return Scene(background=one.background, objects=objects, cells=cells)

    return told(scene), told(twin)
