"""Zero-shot classification: an image belongs to the class whose name, put into templates, it is closest to.

The same arithmetic as retrieval: images ask, classes are the gallery, one answer is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import Embeddings, Scores
from llm2clip.eval.metrics.recall import TieBounds, Ties, best_rank
from llm2clip.eval.runner.evaluate import TextEncoder
from llm2clip.eval.stats.bootstrap import Interval, Resampling, bootstrap_intervals

_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Classification:
    """How many images were put into their class."""

    top1: Interval
    """Share whose class is first, ties against us."""
    top5: Interval
    """Share whose class is among the first five; all with five classes or fewer."""
    top1_ties: TieBounds
    """The first by every rule for ties."""
    per_class: float
    """Mean over classes of the share that is right: the number to compare where classes are of unequal size."""
    classes: int
    """To choose from."""
    images: int
    """Asked."""
    worst: tuple[tuple[int, float], ...]
    """(class, share right) of the ten classes that do worst."""


def class_vectors(
    encoder: TextEncoder, names: Sequence[str], *, templates: Sequence[str]
) -> NDArray[np.float32]:
    """One vector per class: the mean over templates of unit vectors, scaled to unit norm.

    Args:
        encoder: What reads.
        names: One per class.
        templates: Texts with one ``{}``.

    Returns:
        Shape: (classes, dim), float32, unit rows.

    Raises:
        ValueError: If there is no name or no template, or a class's vectors cancel out.
    """
    if not names or not templates:
        raise ValueError(
            f"got {len(names)} names and {len(templates)} templates, expected at least one of each"
        )
    step = max(1, _TEXTS_AT_ONCE // len(templates))
    found = []
    for start in range(0, len(names), step):
        some = names[start : start + step]
        texts = [template.replace("{}", name) for name in some for template in templates]
        vectors = encoder.encode_texts(texts).reshape(len(some), len(templates), -1)
        found.append(vectors.mean(axis=1, dtype=np.float64))
    means = np.concatenate(found)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    if not (norms > 1e-6).all():
        bad = int(np.argmin(norms > 1e-6))
        raise ValueError(
            f"the templates of class '{names[bad]}' have a mean vector of length {norms[bad, 0]:.1g}, expected a "
            "direction. Look for a text encoder that returns NaN or noise."
        )
    return np.asarray(means / norms, dtype=np.float32)


def classify(
    images: Scores,
    *,
    classes: Scores,
    labels: NDArray[np.int64],
    resampling: Resampling | None = None,
) -> Classification:
    """Count images by the rank of their class.

    Args:
        images: Shape: (images, dim), unit rows.
        classes: Shape: (classes, dim), unit rows, by :func:`class_vectors`.
        labels: Shape: (images,): class of each image.
        resampling: Draws, seed and confidence. Images are drawn one by one.

    Raises:
        ValueError: As ``retrieval_metrics``: labels out of range, scores that are not finite.
    """
    where = best_rank(Embeddings(texts=images, images=classes), positives=np.asarray(labels, dtype=np.int64))
    hits = np.stack([where.hits(1), where.hits(5)])
    top1, top5 = bootstrap_intervals(hits, resampling=resampling)
    counts = np.bincount(labels, minlength=len(classes))
    right = np.bincount(labels, weights=hits[0], minlength=len(classes))
    asked = np.flatnonzero(counts)
    share = right[asked] / counts[asked]
    lowest = np.argsort(share, kind="stable")[:10]
    return Classification(
        top1=top1,
        top5=top5,
        top1_ties=TieBounds(**{ties.value: float(where.hits(1, ties=ties).mean()) for ties in Ties}),
        per_class=float(share.mean()),
        classes=len(classes),
        images=len(labels),
        worst=tuple((int(asked[number]), float(share[number])) for number in lowest),
    )
