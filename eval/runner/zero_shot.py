"""Zero-shot classification and caption-to-caption retrieval: retrieval with classes or captions as the gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import Embeddings, Scores
from llm2clip.eval.metrics.rank_positions import rank_positions
from llm2clip.eval.metrics.recall import BestRank, TieBounds, Ties, best_rank
from llm2clip.eval.runner.evaluate import TextEncoder
from llm2clip.eval.stats.bootstrap import Interval, Resampling, bootstrap_intervals

_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Classification:
    """How many images were put into their class."""

    top1: Interval
    top5: Interval
    """Share whose class is among the first five; all with five classes or fewer."""
    top1_ties: TieBounds
    """The first by every rule for ties."""
    per_class: float
    """Mean over classes of the share that is right: the number to compare where classes are of unequal size."""
    classes: int
    images: int
    worst: tuple[tuple[int, float], ...]
    """(class, share right) of the ten classes that do worst."""


def class_vectors(
    encoder: TextEncoder, names: Sequence[str], *, templates: Sequence[str]
) -> NDArray[np.float32]:
    """One vector per class: the normalised mean over templates. Shape: (classes, dim), float32, unit rows."""
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
    images: Scores, *, classes: Scores, labels: NDArray[np.int64], resampling: Resampling | None = None
) -> Classification:
    """Count images by the rank of their class. Shapes: (images, dim), (classes, dim), unit rows; labels (images,)."""
    where = best_rank(Embeddings(texts=images, images=classes), positives=np.asarray(labels, dtype=np.int64))
    hits = np.stack([where.hits(1), where.hits(5)])
    top1, top5 = bootstrap_intervals(hits, resampling=resampling)
    counts = np.bincount(labels, minlength=len(classes))
    right = np.bincount(labels, weights=hits[0], minlength=len(classes))
    asked = np.flatnonzero(counts)
    share = right[asked] / counts[asked]
    lowest = np.argsort(share, kind="stable")[:10].tolist()
    return Classification(
        top1=top1,
        top5=top5,
        top1_ties=TieBounds(**{ties.value: float(where.hits(1, ties=ties).mean()) for ties in Ties}),
        per_class=float(share.mean()),
        classes=len(classes),
        images=len(labels),
        worst=tuple((int(asked[number]), float(share[number])) for number in lowest),
    )


class TooFewCaptionsError(ValueError):
    """Fewer than two images have two captions."""


@dataclass(frozen=True, kw_only=True)
class CaptionRetrieval:
    """Share of captions whose partner comes first, ties against us."""

    first_to_second: Interval
    """First captions are queries. Published values say neither which direction they are, nor how ties count."""
    second_to_first: Interval
    mean: Interval
    """Mean of both; images are drawn, so both questions about one go together."""
    images: int
    left_out: int


def caption_retrieval(
    encoder: TextEncoder,
    captions: Sequence[str],
    *,
    caption_images: Sequence[int],
    resampling: Resampling | None = None,
) -> CaptionRetrieval:
    """Search each image's first caption among all second ones and vice versa, verbatim: LLM2CLIP's criterion."""
    first, second, left_out = caption_pairs(captions, caption_images)
    if len(first) < 2:
        raise TooFewCaptionsError(
            f"got {len(first)} images with two captions, expected at least two. A set with one caption per image "
            "has no caption-to-caption retrieval."
        )
    pair = Embeddings(texts=encoder.encode_texts(first), images=encoder.encode_texts(second))
    rows, columns = rank_positions(pair, positives=np.arange(len(first)), best_only=True)
    assert columns is not None
    hits = [BestRank.of(direction).hits(1) for direction in (rows, columns)]
    found = bootstrap_intervals(np.stack([*hits, (hits[0] + hits[1]) / 2]), resampling=resampling)
    return CaptionRetrieval(
        first_to_second=found[0],
        second_to_first=found[1],
        mean=found[2],
        images=len(first),
        left_out=left_out,
    )


def caption_pairs(captions: Sequence[str], caption_images: Sequence[int]) -> tuple[list[str], list[str], int]:
    """(first captions, second captions, images that have but one), images in order of appearance."""
    if len(captions) != len(caption_images):
        raise ValueError(
            f"got {len(caption_images)} images for {len(captions)} captions, expected one for each"
        )
    by_image: dict[int, list[str]] = {}
    for caption, image in zip(captions, caption_images, strict=True):
        by_image.setdefault(int(image), []).append(caption)
    pairs = [own for own in by_image.values() if len(own) > 1]
    return [own[0] for own in pairs], [own[1] for own in pairs], len(by_image) - len(pairs)
