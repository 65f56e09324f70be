"""Cached text features: the frozen language model reads every caption once, before stage 2."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llm2clip.common.files import atomic_path
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.train.core.device import tensor_of
from llm2clip.train.core.text_states import TextEncoder
from llm2clip.train.synthetic.emoji import Emoji
from llm2clip.train.synthetic.phrases import SCENE_LANGUAGES
from llm2clip.train.synthetic.scenes import Scene, caption, last_twin, sample_scene, swap_twin
from llm2clip.train.synthetic.texts import Text, TextPool


class TextFeatures:
    """Unit features of names and descriptions, and their centroid for each image."""

    def __init__(self, texts: Sequence[Text], features: Tensor, images: int) -> None:
        """Group features of texts by image. Shape: (texts, D), float16, unit rows."""
        self.features = features
        self._texts = texts
        lists: list[list[int]] = [[] for _ in range(images)]
        for row, text in enumerate(texts):
            for image in text.images:
                lists[image].append(row)
        self._of_image = [np.array(rows) for rows in lists]
        self.centroids = torch.stack(
            [F.normalize(features[tensor_of(rows)].float().mean(0), dim=0) for rows in self._of_image]
        )

    def draw(self, images: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """One caption's feature for each image. Shape: (len(images), D), float32."""
        rows = [int(rng.choice(self._of_image[image])) for image in images]
        return self.features[torch.tensor(rows)].float()

    def names(self, language: str) -> tuple[Tensor, Tensor]:
        """Images and features of a language's names. Shapes: (n,) int64, (n, D) float32."""
        first: dict[int, int] = {}
        for row, text in enumerate(self._texts):
            if text.language == language and len(text.images) == 1:
                first.setdefault(text.images[0], row)
        return torch.tensor(list(first)), self.features[torch.tensor(list(first.values()))].float()


@dataclass
class SceneFeatures:
    """Scenes with cached features of their captions and their twins' captions."""

    scenes: list[Scene]
    captions: Tensor
    """Shape: (scenes, wordings, D), float16, unit rows."""
    twins: Tensor
    """Shape: (scenes, 2, wordings, D), float16: places swapped, last object changed; wordings as in ``captions``."""
    held: SceneFeatures | None = None
    """Scenes never trained on, for the progress report."""

    def draw(self, rows: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A caption of each scene, and its twins in the same wording. Shapes: (n, D), (2 n, D), float32."""
        index = tensor_of(rows)
        wording = tensor_of(rng.integers(self.captions.shape[1], size=len(rows)))
        twins = self.twins[index, :, wording].float()
        return self.captions[index, wording].float(), twins.transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def read_texts(model: BidirectionalLlama, encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Unit features of texts. Shape: (len(texts), D), float16."""
    from rich.console import Console
    from rich.progress import track

    parts = []
    for start in track(range(0, len(texts), 2048), "features", console=Console(stderr=True)):
        parts.append(F.normalize(encoder.pool(model, texts[start : start + 2048]), dim=-1).half())
    return torch.cat(parts)


def cache_texts(model: BidirectionalLlama, encoder: TextEncoder, pool: TextPool, path: Path) -> TextFeatures:
    """Features of all names and descriptions, cached at ``path``."""
    texts = [*pool.names, *pool.descriptions]
    features = _read_once(path, model, encoder, [text.text for text in texts])
    return TextFeatures(texts, features, len(pool.emoji))


def cache_scenes(
    model: BidirectionalLlama,
    encoder: TextEncoder,
    emoji: Sequence[Emoji],
    pool: Sequence[int],
    path: Path,
    *,
    count: int,
    wordings: int,
    seed: int,
) -> SceneFeatures:
    """Draw ``count`` scenes and read their captions and their twins', cached at ``path``.

    One scene in three has two to five objects, the rest six to eight.
    """
    rng = np.random.default_rng([seed, 5])
    scenes = [
        sample_scene(pool, rng, objects=(2, 5) if rng.random() < 0.33 else (6, 8)) for _ in range(count)
    ]
    texts: list[str] = []
    for scene in scenes:
        family = (scene, swap_twin(scene, rng), last_twin(scene, pool, rng))
        told = [(_language(rng), int(rng.integers(3))) for _ in range(wordings - 1)]
        for language, wording in [("en", int(rng.integers(3))), *told]:  # English first
            texts += [caption(one, emoji, language=language, wording=wording) for one in family]
    features = _read_once(path, model, encoder, texts)
    shaped = features.view(count, wordings, 3, -1)
    return SceneFeatures(scenes, shaped[:, :, 0], shaped[:, :, 1:].transpose(1, 2))


def _language(rng: np.random.Generator) -> str:
    return SCENE_LANGUAGES[int(rng.integers(len(SCENE_LANGUAGES)))]


def _read_once(path: Path, model: BidirectionalLlama, encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Features of texts, from ``path`` if they were made of these texts by this model."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    wanted = _fingerprint(model, encoder, texts)
    if path.exists():
        with safe_open(path, "pt", device=str(torch.get_default_device())) as saved:
            if (saved.metadata() or {}).get("made_from") == wanted:
                kept: Tensor = saved.get_tensor("features")
                return kept
    features = read_texts(model, encoder, texts)
    with atomic_path(path, alone=True) as draft:
        save_file({"features": features}, draft, metadata={"made_from": wanted})
    return features


def _fingerprint(model: BidirectionalLlama, encoder: TextEncoder, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(encoder.tokenizer.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
