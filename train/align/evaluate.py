"""Recall by language of the images and captions kept for measuring, by ``eval``'s own metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.recall import BestRank, best_rank, direction_metrics
from llm2clip.train.data.captions import Caption

KS = (1, 5, 10)
_CHUNK = 1024


@dataclass(frozen=True)
class Queries:
    """The captions of one language."""

    language: str
    """Code, or ``all`` where files name no language."""
    texts: NDArray[np.int64]
    """Number of each caption's text. Shape: (queries,)."""
    images: NDArray[np.int64]
    """Number of the image that each describes. Shape: (queries,)."""


def queries_of(captions: Sequence[Sequence[Caption]], numbers: dict[str, int]) -> list[Queries]:
    """Queries by language; ``numbers`` gives each text's row of features."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    for image, group in enumerate(captions):
        for caption in group:
            texts, images = found.setdefault(caption.language or "all", ([], []))
            texts.append(numbers[caption.text])
            images.append(image)
    return [
        Queries(language, np.array(texts, np.int64), np.array(images, np.int64))
        for language, (texts, images) in sorted(found.items())
    ]


def best_ranks(
    queries: Sequence[Queries],
    *,
    images: Tensor,
    text_vectors: Callable[[NDArray[np.int64]], Tensor],
) -> dict[str, BestRank]:
    """Where the right image of each caption stands, by language.

    Args:
        queries: From :func:`queries_of`.
        images: Vectors of all images, any scale. Shape: (images, dim).
        text_vectors: Numbers of texts to their vectors, any scale.
    """
    gallery = _unit(images)
    found = {}
    for each in queries:
        parts = [text_vectors(each.texts[n : n + _CHUNK]) for n in range(0, len(each.texts), _CHUNK)]
        scores = Embeddings(texts=_unit(torch.cat(parts)), images=gallery)
        found[each.language] = best_rank(scores, positives=each.images)
    return found


def recalls(ranks: dict[str, BestRank]) -> dict[str, float]:
    """R@1, R@5 and R@10 in % by language (``en/R@1``), and their means over languages (``mean/R@1``)."""
    measured: dict[str, float] = {}
    for language, where in ranks.items():
        metrics = direction_metrics(where, ks=KS)
        measured |= {f"{language}/R@{k}": 100 * metrics.recall[k].pessimistic for k in KS}
    for k in KS:
        values = [measured[f"{language}/R@{k}"] for language in ranks]
        measured[f"mean/R@{k}"] = float(np.mean(values))
    return measured


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = F.normalize(vectors.float(), dim=-1).cpu().numpy()
    return unit
