"""Recall by the length of captions, and of the same captions cut short."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import Embeddings, Scores
from llm2clip.eval.metrics.rank_positions import PositivesLike
from llm2clip.eval.metrics.recall import best_rank
from llm2clip.eval.results.records import DirectionResult, Lengths, Share, unpack
from llm2clip.eval.stats.bootstrap import Interval, Resampling, bootstrap_interval

if TYPE_CHECKING:
    from llm2clip.eval.runner.evaluate import TextEncoder

BUCKETS = (16, 32, 64, 77, 128, 248)
"""Last length of each bucket but the open one, in tokens: 77 is CLIP's window, 248 that of Long-CLIP."""
PREFIXES = (10, 20, 40, 80, 160)
"""Lengths of the prefixes used as queries, in words."""
_LONG_WORDS, _LONG_SHARE = 20, 0.1
"""Prefixes are used as queries if at least this share of captions is longer than so many words."""
_UNSPACED = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO ", "KHMER", "MYANMAR")


def measure_lengths(
    encoder: TextEncoder,
    captions: Sequence[str],
    *,
    images: Scores,
    positives: PositivesLike,
    found: DirectionResult,
    max_tokens: int,
    resampling: Resampling,
) -> Lengths:
    """Break recall@1 down by tokens, and measure beginnings where many captions are long."""
    clusters = unpack(found.clusters).astype(np.int64)
    tokens = np.asarray(encoder.count_tokens(captions), dtype=np.int64)
    long = np.mean([first_words(text, _LONG_WORDS) != text for text in captions]) >= _LONG_SHARE
    prefixes = (
        prefix_curve(
            encoder,
            captions,
            pair=(images, positives),
            max_tokens=max_tokens,
            clusters=clusters,
            resampling=resampling,
        )
        if long
        else []
    )
    return Lengths(
        truncated=float(np.mean(tokens > max_tokens)),
        tokens_per_caption=float(tokens.mean()),
        buckets=tuple(by_length(unpack(found.ranks) <= 1, tokens, clusters=clusters, resampling=resampling)),
        prefixes=tuple(prefixes),
    )


def by_length(
    hits: NDArray[np.bool_],
    tokens: NDArray[np.int64],
    *,
    clusters: NDArray[np.int64] | None = None,
    resampling: Resampling | None = None,
) -> list[Share]:
    """Recall of text queries by their tokens before truncation. Shapes: (texts,). Empty buckets are left out."""
    if tokens.shape != hits.shape or not len(tokens):
        raise ValueError(f"got {len(tokens)} numbers of tokens for {len(hits)} texts, expected one for each")
    bucket = np.searchsorted(BUCKETS, tokens)
    found = []
    for number in np.unique(bucket).tolist():
        inside = bucket == number
        own = None if clusters is None else clusters[inside]
        interval = bootstrap_interval(hits[inside].astype(np.float64), clusters=own, resampling=resampling)
        found.append(_share(_label(number), float(tokens[inside].mean()), interval))
    return found


def _label(bucket: int) -> str:
    if bucket == len(BUCKETS):
        return f">{BUCKETS[-1]}"
    return f"{BUCKETS[bucket - 1] + 1}-{BUCKETS[bucket]}" if bucket else f"<={BUCKETS[0]}"


def prefix_curve(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    pair: tuple[Scores, PositivesLike],
    max_tokens: int,
    words: Sequence[int] = PREFIXES,
    clusters: NDArray[np.int64] | None = None,
    resampling: Resampling | None = None,
) -> list[Share]:
    """Recall@1 with the first words only, up to the length at which no text is cut, and with whole texts."""
    if any(number < 1 for number in words):
        raise ValueError(f"got prefixes of {list(words)} words, expected at least 1 each")
    images, positives = pair
    points = []
    for number in (*sorted(words), None):
        cut = list(texts) if number is None else [first_words(text, number) for text in texts]
        if number is not None and cut == list(texts):
            continue
        read = np.minimum(encoder.count_tokens(cut), max_tokens)
        ranks = best_rank(Embeddings(texts=encoder.encode_texts(cut), images=images), positives=positives)
        interval = bootstrap_interval(ranks.hits(1), clusters=clusters, resampling=resampling)
        points.append(_share(f"{number} words" if number else "whole", float(np.mean(read)), interval))
    return points


def _share(label: str, tokens: float, hits: Interval) -> Share:
    return Share(
        label=label, tokens=tokens, queries=hits.queries, value=hits.value, low=hits.low, high=hits.high
    )


def first_words(text: str, words: int) -> str:
    """The longest beginning of at most so many words.

    Words end at white space; in scripts written without it (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each letter
    counts as one. Punctuation does not count.
    """
    seen, inside = 0, False
    for position, letter in enumerate(text):
        if letter.isspace():
            inside = False
        elif (
            unicodedata.category(letter)[0] not in "MP"
        ):  # marks and punctuation go with the letter before them
            alone = _unspaced(letter)
            if alone or not inside:
                seen += 1
                if seen > words:
                    return text[:position].rstrip()
            inside = not alone
    return text


def _unspaced(letter: str) -> bool:
    return ord(letter) > 0x7F and unicodedata.name(letter, "").startswith(_UNSPACED) and not letter.isdigit()
