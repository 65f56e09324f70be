"""Caption-to-caption retrieval accuracy (CRA), by language and by length.

As LLM2CLIP measures text models: the first two captions of an image are to find each other among the captions of all
images, top-1, averaged over both directions. Ties count against the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.recall import best_rank
from llm2clip.train.data.captions import CaptionGroup

BUCKETS = (8, 16, 32, 64)
"""Last length of each bucket but the open one, in tokens."""
_LEAST = 20
"""Fewer pairs of a language or length are not reported by themselves: their accuracy says nothing."""

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to rows of any scale. Shape: (texts, dim)."""


@dataclass(frozen=True)
class Pairs:
    """Captions of one language, two of each image."""

    language: str
    """Its code, or ``any`` where the data do not say."""
    first: tuple[str, ...]
    """The first caption of each image."""
    second: tuple[str, ...]
    """The second one."""


def caption_pairs(groups: Sequence[CaptionGroup], *, most: int = 1000) -> list[Pairs]:
    """The first two captions in each language of each group, for at most so many groups of a language."""
    found: dict[str, list[tuple[str, str]]] = {}
    for group in groups:
        texts: dict[str, list[str]] = {}
        for caption in group.captions:
            texts.setdefault(caption.language or "any", []).append(caption.text)
        for language, own in texts.items():
            pairs = found.setdefault(language, [])
            if len(own) > 1 and len(pairs) < most:
                pairs.append((own[0], own[1]))
    kept = {language: pairs for language, pairs in found.items() if len(pairs) >= 2}
    large = {language: pairs for language, pairs in kept.items() if len(pairs) >= _LEAST} or kept
    return [
        Pairs(language, tuple(a for a, _ in pairs), tuple(b for _, b in pairs))
        for language, pairs in sorted(large.items())
    ]


def caption_accuracy(
    encode: Encode, pairs: Sequence[Pairs], *, count_tokens: Callable[[Sequence[str]], Sequence[int]]
) -> dict[str, float]:
    """CRA in percent: ``cra`` (mean of the languages), ``cra_en``, ..., and ``cra_9-16`` by tokens of the query.

    Raises:
        ValueError: There are no pairs, or a vector is not finite.
    """
    if not pairs:
        raise ValueError("nothing to evaluate: no language has two images with two captions each")
    measures, hits, tokens = {}, [], []
    for pair in pairs:
        rows = np.asarray(encode([*pair.first, *pair.second]), np.float32)
        found = pair_hits(rows[: len(pair.first)], rows[len(pair.first) :])
        measures[f"cra_{pair.language}"] = 100 * float(np.mean(found))
        hits += list(found)
        tokens += [np.asarray(count_tokens(texts)) for texts in (pair.first, pair.second)]
    mean = float(np.mean(list(measures.values())))
    return {"cra": mean, **measures, **_by_length(np.concatenate(hits), np.concatenate(tokens))}


def pair_hits(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Whether rows of one number are each other's nearest. Shapes: (n, dim), any scale -> (2, n), both ways."""
    halves = [
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (first, second)
    ]
    own = np.arange(len(first))
    found = [
        best_rank(Embeddings(texts=asked, images=searched), positives=own).hits(1)
        for asked, searched in (halves, halves[::-1])
    ]
    return np.stack(found)


def _by_length(hits: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, float]:
    bucket = np.searchsorted(BUCKETS, tokens)
    names = [
        f"1-{BUCKETS[0]}",
        *(f"{a + 1}-{b}" for a, b in pairwise(BUCKETS)),
        f"{BUCKETS[-1] + 1}-",
    ]
    return {
        f"cra_{names[number]}": 100 * float(hits[bucket == number].mean())
        for number in np.unique(bucket).tolist()
        if (bucket == number).sum() >= _LEAST
    }
