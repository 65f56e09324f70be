"""Caption-to-caption retrieval accuracy: does a text encoder put two captions of one image together?

The measure LLM2CLIP chose its language models by: of every image the first two captions, in their order in the set;
each first caption looks for its second among all second captions and the other way round. Only the text side is used,
captions go in verbatim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.rank_positions import rank_positions
from llm2clip.eval.metrics.recall import BestRank
from llm2clip.eval.runner.evaluate import TextEncoder
from llm2clip.eval.stats.bootstrap import Interval, Resampling, bootstrap_intervals


class TooFewCaptionsError(ValueError):
    """Fewer than two images have two captions."""


@dataclass(frozen=True, kw_only=True)
class CaptionRetrieval:
    """Share of captions whose partner comes first, ties against us."""

    first_to_second: Interval
    """First captions ask. The published values do not say which of the two they are, nor how ties count."""
    second_to_first: Interval
    """Second captions ask."""
    mean: Interval
    """Mean of both; images are drawn, so both questions about one go together."""
    images: int
    """Images with at least two captions."""
    left_out: int
    """Images with fewer."""


def caption_retrieval(
    encoder: TextEncoder,
    captions: Sequence[str],
    *,
    caption_images: Sequence[int],
    resampling: Resampling | None = None,
) -> CaptionRetrieval:
    """Measure a text encoder on the captions of a set.

    Args:
        encoder: Anything that encodes texts; its image side is not needed.
        captions: In the order of the set, which decides what the first two of an image are.
        caption_images: The image of each caption.
        resampling: Draws, seed and confidence.

    Raises:
        ValueError: If there are not as many images as captions.
        TooFewCaptionsError: If fewer than two images have two captions.
    """
    first, second, left_out = caption_pairs(captions, caption_images)
    if len(first) < 2:
        raise TooFewCaptionsError(
            f"got {len(first)} images with two captions, expected at least two. A set with one caption per image "
            "has no caption-to-caption retrieval."
        )
    pair = Embeddings(texts=encoder.encode_texts(first), images=encoder.encode_texts(second))
    rows, columns = rank_positions(pair, positives=np.arange(len(first)), best_only=True)
    assert columns is not None
    hits: list[NDArray[np.float64]] = [BestRank.of(side).hits(1) for side in (rows, columns)]
    found = bootstrap_intervals(np.stack([*hits, (hits[0] + hits[1]) / 2]), resampling=resampling)
    return CaptionRetrieval(
        first_to_second=found[0],
        second_to_first=found[1],
        mean=found[2],
        images=len(first),
        left_out=left_out,
    )


def caption_pairs(captions: Sequence[str], caption_images: Sequence[int]) -> tuple[list[str], list[str], int]:
    """(first captions, second captions, images that have but one), images in the order they appear in."""
    if len(captions) != len(caption_images):
        raise ValueError(
            f"got {len(caption_images)} images for {len(captions)} captions, expected one for each"
        )
    by_image: dict[int, list[str]] = {}
    for caption, image in zip(captions, caption_images, strict=True):
        by_image.setdefault(int(image), []).append(caption)
    pairs = [own for own in by_image.values() if len(own) > 1]
    return [own[0] for own in pairs], [own[1] for own in pairs], len(by_image) - len(pairs)
