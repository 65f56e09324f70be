"""Recall by length of the captions, and by how much of them is read, with vectors kept like all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.results.records import Lengths, Share, unpack
from llm2clip.eval.runner.breakdowns import PrefixOptions, by_length, first_words, prefix_curve
from llm2clip.eval.runner.embedding_cache import FeatureStore, encode_texts
from llm2clip.eval.stats.bootstrap import Resampling

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.eval.datasets.retrieval_set import RetrievalSet
    from llm2clip.eval.results.records import DirectionResult
    from llm2clip.eval.runner.measure import Vectors

_LONG_WORDS = 20
_LONG_SHARE = 0.1
"""Beginnings are asked with where at least this share of captions is longer than so many words."""


class StoredTexts:
    """An encoder's reading side that keeps its vectors on disk."""

    def __init__(self, encoder: Encoder, store: FeatureStore) -> None:
        self._encoder, self._store = encoder, store

    def encode_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Shape: (texts, dim), float32, unit rows."""
        return encode_texts(self._encoder, texts, store=self._store).vectors

    def count_tokens(self, texts: Sequence[str], /) -> list[int]:
        """Tokens of each text, as the encoder counts them."""
        return self._encoder.count_tokens(texts)


def measure_lengths(
    encoder: Encoder,
    the_set: RetrievalSet,
    vectors: Vectors,
    *,
    found: DirectionResult,
    store: FeatureStore,
    resampling: Resampling,
) -> Lengths:
    """Split the captions of a set by tokens, and ask again with their beginnings where many are long.

    Args:
        encoder: What read them.
        the_set: The captions.
        vectors: The images' vectors.
        found: Text to image, as it was counted.
        store: Where vectors of beginnings are kept.
        resampling: Of the intervals.
    """
    hits = (unpack(found.ranks) <= 1).astype(np.float64)
    clusters = unpack(found.clusters).astype(np.int64)
    captions = list(the_set.captions)
    split = by_length(
        hits,
        tokens=encoder.count_tokens(captions),
        max_tokens=encoder.info.max_text_tokens,
        clusters=clusters,
        resampling=resampling,
    )
    points = []
    if np.mean([first_words(text, _LONG_WORDS) != text for text in captions]) >= _LONG_SHARE:
        options = PrefixOptions(
            max_tokens=encoder.info.max_text_tokens, clusters=clusters, resampling=resampling
        )
        points = prefix_curve(
            StoredTexts(encoder, store),
            captions,
            images=vectors.images.vectors,
            positives=list(the_set.caption_images),
            options=options,
        )
    return Lengths(
        truncated=split.truncated,
        tokens_per_caption=split.tokens,
        buckets=tuple(
            Share(
                label=one.label,
                tokens=one.tokens,
                queries=one.hits.queries,
                value=one.hits.value,
                low=one.hits.low,
                high=one.hits.high,
            )
            for one in split.buckets
        ),
        prefixes=tuple(
            Share(
                label=f"{one.words} words" if one.words else "whole",
                tokens=one.tokens,
                queries=one.hits.queries,
                value=one.hits.value,
                low=one.hits.low,
                high=one.hits.high,
            )
            for one in points
        ),
    )
