"""Which images, and which of their captions, are in the batch of a step: a pure function of seed and step.

An epoch has every image once, but for what does not fill a batch. Of an image's captions one is drawn: first the
language, then the kind, each by weight among those the image has, then evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.train.data.captions import Caption, CaptionFileError

_ORDER, _DRAW = 11, 12
_TRIES = 40


@dataclass(frozen=True)
class Weight:
    """How often something is drawn."""

    name: str
    """A language such as ``zh``, or a kind such as ``raw``, ``short``, ``long``."""
    weight: float = 1.0
    """Relative to the others; 0: never."""


@dataclass(frozen=True, kw_only=True)
class CaptionMix:
    """Which captions are drawn."""

    languages: tuple[Weight, ...] = ()
    """Empty: all languages evenly; else only these."""
    kinds: tuple[Weight, ...] = ()
    """Empty: all kinds evenly; else only these. The paper: half raw, half long."""


class PairBatches:
    """The batches of a set of images with captions."""

    def __init__(
        self, captions: Sequence[Sequence[Caption]], *, size: int, mix: CaptionMix, seed: int
    ) -> None:
        """Number the texts of the mix; ``CaptionFileError`` if it leaves less than a batch of two images.

        Args:
            captions: Of each image.
            size: Images of a batch.
            mix: Which captions are drawn.
            seed: Of the order.
        """
        self.seed = seed
        numbers: dict[str, int] = {}
        starts, texts, shares = [0], list[int](), list[float]()
        for each in captions:
            for caption, share in zip(each, _shares(each, mix), strict=True):
                if share > 0:
                    texts.append(numbers.setdefault(caption.text, len(numbers)))
                    shares.append(share)
            starts.append(len(texts))
        self.texts: tuple[str, ...] = tuple(numbers)
        """The different texts that are drawn."""
        self.starts = np.array(starts, np.int64)
        self.text_of = np.array(texts, np.int64)
        """Of each caption the number of its text; image i has captions ``starts[i]`` to ``starts[i + 1]``."""
        self.shares = np.array(shares, np.float64)
        """Of each caption the probability of being drawn for its image."""
        self.images = np.flatnonzero(np.diff(self.starts))
        """Images with a caption of the mix."""
        if len(self.images) < 2:
            raise CaptionFileError(
                f"{len(self.images)} images have a caption in the wanted languages and kinds, expected at least 2"
            )
        self.size = min(size, len(self.images))
        self._cumulative = np.cumsum(self.shares)
        self._order: tuple[int, NDArray[np.int64]] = (-1, self.images)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.images) // self.size

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Images of a step and the text drawn for each, no image and no text twice. Shapes: (size,), (size,)."""
        epoch, place = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.images)
        images = self._order[1][place * self.size : (place + 1) * self.size].copy()
        rng = np.random.default_rng([self.seed, _DRAW, step])
        texts = self._draw(images, rng)
        for _ in range(_TRIES):
            # An image whose text is drawn already would count that text as wrong.
            _, first = np.unique(texts, return_index=True)
            again = np.setdiff1d(np.arange(len(texts)), first)
            if not len(again):
                break
            texts[again] = self._draw(images[again], rng)
        return images, texts

    def _draw(self, images: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        first, last = self.starts[images], self.starts[images + 1]
        before = np.where(first > 0, self._cumulative[first - 1], 0.0)
        wanted = before + rng.random(len(images)) * (self._cumulative[last - 1] - before)
        captions = np.searchsorted(self._cumulative, wanted, side="right")
        return self.text_of[np.clip(captions, first, last - 1)]


def _shares(captions: Sequence[Caption], mix: CaptionMix) -> list[float]:
    """Probability of each caption of one image; all 0 if the mix has none of them."""
    languages = _weights({caption.language or "" for caption in captions}, mix.languages)
    shares = [0.0] * len(captions)
    total = sum(languages.values())
    for language, weight in languages.items():
        inside = [n for n, caption in enumerate(captions) if (caption.language or "") == language]
        kinds = _weights({captions[n].kind for n in inside}, mix.kinds)
        whole = sum(kinds.values())
        for n in inside:
            kind = captions[n].kind
            if whole and total:
                alike = sum(captions[m].kind == kind for m in inside)
                shares[n] = weight / total * kinds[kind] / whole / alike
    return shares


def _weights(present: set[str], wanted: Sequence[Weight]) -> dict[str, float]:
    if not wanted:
        return dict.fromkeys(sorted(present), 1.0)
    named = {each.name: each.weight for each in wanted}
    return {name: named.get(name, 0.0) for name in sorted(present)}
