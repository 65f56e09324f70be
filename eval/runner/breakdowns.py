"""The same numbers by length of the text, by how much of it is read, and by language."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.best_rank import best_rank
from llm2clip.eval.metrics.blockwise_scores import Embeddings, Scores
from llm2clip.eval.metrics.rank_positions import PositivesLike
from llm2clip.eval.runner.evaluate import TextEncoder
from llm2clip.eval.stats.bootstrap import Clustered, Interval, Resampling, bootstrap_interval, macro_interval

BUCKETS = (16, 32, 64, 77, 128, 248)
"""Last length of each bucket but the open one, in tokens: 77 is CLIP's window, 248 that of Long-CLIP."""
PREFIXES = (10, 20, 40, 80, 160)
"""Words of the beginnings that are asked with."""
_UNSPACED = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO ", "KHMER", "MYANMAR")


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Queries of about one length."""

    first: int
    """Fewest tokens of the bucket."""
    last: int | None
    """Most tokens of it; ``None`` for no limit."""
    tokens: float
    """Mean tokens of its queries."""
    hits: Interval
    """Share of them answered."""

    @property
    def label(self) -> str:
        """``17-32``, ``<=16`` or ``>248``."""
        if self.last is None:
            return f">{self.first - 1}"
        return f"<={self.last}" if self.first == 0 else f"{self.first}-{self.last}"


@dataclass(frozen=True, kw_only=True)
class LengthBreakdown:
    """What the length of a text does."""

    buckets: tuple[Bucket, ...]
    """Shortest first; lengths that do not occur are left out."""
    truncated: float
    """Share of texts longer than the encoder reads."""
    tokens: float
    """Mean tokens of a text by the encoder's own tokenizer, which also tells what a language costs it."""


def by_length(
    hits: NDArray[np.floating],
    *,
    tokens: Sequence[int],
    max_tokens: int,
    clusters: NDArray[np.int64] | None = None,
    resampling: Resampling | None = None,
) -> LengthBreakdown:
    """Split text queries by their number of tokens.

    Args:
        hits: Shape: (texts,): hits of each text.
        tokens: Tokens of each text before cutting, by ``count_tokens`` of the encoder.
        max_tokens: Tokens that the encoder reads.
        clusters: Shape: (texts,): the image of each.
        resampling: Draws, seed and confidence of the intervals.

    Raises:
        ValueError: If there are not as many numbers of tokens as hits.
    """
    counts = np.asarray(tokens, dtype=np.int64)
    if counts.shape != hits.shape or not len(counts):
        raise ValueError(f"got {len(counts)} numbers of tokens for {len(hits)} texts, expected one for each")
    place = np.searchsorted(BUCKETS, counts)
    found = []
    for number in np.unique(place).tolist():
        inside = place == number
        found.append(
            Bucket(
                first=BUCKETS[number - 1] + 1 if number else 0,
                last=BUCKETS[number] if number < len(BUCKETS) else None,
                tokens=float(counts[inside].mean()),
                hits=bootstrap_interval(
                    hits[inside],
                    clusters=None if clusters is None else clusters[inside],
                    resampling=resampling,
                ),
            )
        )
    return LengthBreakdown(
        buckets=tuple(found), truncated=float(np.mean(counts > max_tokens)), tokens=float(counts.mean())
    )


@dataclass(frozen=True, kw_only=True)
class PrefixPoint:
    """Asked with the beginnings of texts only."""

    words: int | None
    """Words that were kept; ``None`` for whole texts."""
    tokens: float
    """Mean tokens that the encoder read of them."""
    shortened: float
    """Share of texts that are longer than that and were cut."""
    hits: Interval
    """Share of texts whose image is first."""


def prefix_curve(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    images: Scores,
    positives: PositivesLike,
    options: PrefixOptions,
) -> list[PrefixPoint]:
    """Recall of the same queries against the number of tokens read: where the curve turns flat, reading ends.

    All texts are asked at every length, those that are short anyway unchanged. The curve stops at the first length at
    which none is cut, and whole texts are its last point.

    Args:
        encoder: What reads.
        texts: Queries.
        images: Shape: (images, dim), unit rows: the gallery.
        positives: As in ``retrieval_metrics``; each text needs a right image.
        options: Lengths, limit of the encoder, images to draw together.

    Raises:
        ValueError: As ``retrieval_metrics``; for lengths that are not positive.
    """
    if any(words < 1 for words in options.words):
        raise ValueError(f"got prefixes of {list(options.words)} words, expected at least 1 each")
    points = []
    for words in (*sorted(options.words), None):
        cut = [text if words is None else first_words(text, words) for text in texts]
        shortened = float(np.mean([one != text for one, text in zip(cut, texts, strict=True)]))
        if words is not None and not shortened:
            continue
        pair = Embeddings(texts=encoder.encode_texts(cut), images=images)
        read = np.minimum(encoder.count_tokens(cut), options.max_tokens)
        points.append(
            PrefixPoint(
                words=words,
                tokens=float(np.mean(read)),
                shortened=shortened,
                hits=bootstrap_interval(
                    best_rank(pair, positives=positives).hits(options.k),
                    clusters=options.clusters,
                    resampling=options.resampling,
                ),
            )
        )
    return points


@dataclass(frozen=True, kw_only=True)
class PrefixOptions:
    """How to draw a prefix curve."""

    max_tokens: int
    """Tokens that the encoder reads."""
    words: Sequence[int] = PREFIXES
    """Lengths, in words."""
    k: int = 1
    """Recall at this k."""
    clusters: NDArray[np.int64] | None = None
    """Shape: (texts,): the image of each text."""
    resampling: Resampling | None = None
    """Draws, seed and confidence."""


def first_words(text: str, words: int) -> str:
    """The longest beginning of at most so many words.

    Words end at white space; in scripts that are written without it (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each
    letter counts as one. Punctuation counts for nothing. Nothing else is changed.
    """
    seen, inside = 0, False
    for place, letter in enumerate(text):
        if letter.isspace():
            inside = False
        elif (
            unicodedata.category(letter)[0] not in "MP"
        ):  # marks and punctuation go with the letter before them
            alone = _unspaced(letter)
            if alone or not inside:
                seen += 1
                if seen > words:
                    return text[:place].rstrip()
            inside = not alone
    return text


def _unspaced(letter: str) -> bool:
    return ord(letter) > 0x7F and unicodedata.name(letter, "").startswith(_UNSPACED) and not letter.isdigit()


@dataclass(frozen=True, kw_only=True)
class LanguageSummary:
    """One number over all languages of a set, each counting the same."""

    mean: float
    """Plain mean over languages."""
    low: float
    """Lower end of its interval: images are drawn once for all languages."""
    high: float
    """Upper end of it."""
    spread: float
    """Standard deviation between languages."""
    worst: float
    """Mean over the five lowest languages, or all if there are fewer."""
    worst_languages: tuple[str, ...]
    """Which, lowest first."""
    english_gap: float | None
    """English minus the mean of the others; ``None`` without English or without others."""
    languages: Mapping[str, Interval]
    """Each with its own interval."""


def by_language(
    hits: Mapping[str, NDArray[np.floating]],
    *,
    clusters: Mapping[str, NDArray[np.int64]],
    resampling: Resampling | None = None,
) -> LanguageSummary:
    """Sum up one encoder's hits over the languages of a set.

    Args:
        hits: By language code, shape: (queries,): hits of that language's queries.
        clusters: By language code, shape: (queries,): the image of each; the same number is the same image in every
            language.
        resampling: Draws, seed and confidence.

    Raises:
        ValueError: If there is no language, or one has no clusters.
    """
    if not hits or hits.keys() != clusters.keys():
        raise ValueError(
            f"got hits in {sorted(hits)} and clusters in {sorted(clusters)}, expected the same languages, at least one"
        )
    parts = [Clustered.of(hits[code], clusters[code]) for code in hits]
    mean, low, high = macro_interval(parts, shared=True, resampling=resampling)
    values = {code: float(np.mean(one)) for code, one in hits.items()}
    lowest = sorted(values, key=lambda code: values[code])[:5]
    others = [value for code, value in values.items() if code != "en"]
    return LanguageSummary(
        mean=mean,
        low=low,
        high=high,
        spread=float(np.std(list(values.values()))),
        worst=float(np.mean([values[code] for code in lowest])),
        worst_languages=tuple(lowest),
        english_gap=values["en"] - float(np.mean(others)) if "en" in values and others else None,
        languages={
            code: bootstrap_interval(one, clusters=clusters[code], resampling=resampling)
            for code, one in hits.items()
        },
    )
