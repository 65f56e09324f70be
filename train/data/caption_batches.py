"""Which groups and which of their captions are in the batch of a step: a pure function of seed and step.

An epoch has every group once, but for what does not fill a batch. Its batches, each of one source, come in random
order, so a source is drawn with probability by size. Within a batch no group and no text occurs twice: a text of two
groups would be right and wrong at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm2clip.train.data.caption_pool import CaptionPool
from llm2clip.train.data.captions import Caption, CaptionFileError, CaptionGroup

Pairing: TypeAlias = Literal["any", "across_kinds", "across_languages", "within_language"]
_ORDER, _DRAW = 1, 2
"""What random numbers are for, so that one use does not repeat another's."""
_TRIES = 4
"""Groups tried in place of one whose texts the batch already has."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Size of a batch, and how texts are paired in it."""

    size: int = 512
    """Groups of a batch."""
    positives: int = 1
    """Captions that are right for the query caption, where a group has as many."""
    pairing: Pairing = "any"
    """Which captions of a group make pairs: any two, of two kinds (short with long), of two languages or of one."""
    random_negatives: bool = False
    """Add a caption of another, random group for each query, as the released stage 1 does, beside listed negatives."""

    def __post_init__(self) -> None:
        if self.size < 2 or self.positives < 1:
            raise ValueError(
                f"size must be at least 2 and positives at least 1, got {self.size} and {self.positives}"
            )


@dataclass(frozen=True)
class CaptionBatch:
    """Texts of one step."""

    keys: tuple[str, ...]
    """Key of each query's group."""
    queries: tuple[str, ...]
    """One caption of each group."""
    positives: tuple[str, ...]
    """Captions that are right for one query each."""
    owners: NDArray[np.int64]
    """Number of the query that a positive belongs to. Shape: (positives,)."""
    negatives: tuple[str, ...]
    """Texts that are wrong for every query."""
    source: str
    """Data set they are from."""


class CaptionBatches:
    """The batches of a pool."""

    def __init__(self, pool: CaptionPool, config: BatchConfig, *, seed: int) -> None:
        """``CaptionFileError`` if no source has two groups."""
        self.pool, self.config, self.seed = pool, config, seed
        self._members = [pool.of_source(name) for name in pool.sources]
        counts = [self._batches_of(len(members)) for members in self._members]
        self._blocks = np.array(
            [(source, block) for source, count in enumerate(counts) for block in range(count)], np.int64
        ).reshape(-1, 2)
        if not len(self._blocks):
            raise CaptionFileError("no source has two groups of captions, so there is nothing to contrast")
        self._order: tuple[int, NDArray[np.int64]] = (-1, self._blocks)
        self._shuffled: dict[tuple[int, int], NDArray[np.int64]] = {}

    @property
    def per_epoch(self) -> int:
        """Batches in which every group occurs once."""
        return len(self._blocks)

    def batch(self, step: int) -> CaptionBatch:
        """The batch of a step, counted from 0; the same whenever it is asked for."""
        epoch, place = divmod(step, self.per_epoch)
        source, block = self._blocks_of(epoch)[place]
        rng = np.random.default_rng([self.seed, _DRAW, step])
        members = self._groups_of(epoch, int(source))
        chosen = members[int(block) * self.config.size :][: self.config.size]
        made = _Batch(self.config, rng)
        for number in chosen.tolist():
            tries = 0
            while not made.add(self.pool[number]) and tries < _TRIES:
                number, tries = int(members[rng.integers(len(members))]), tries + 1
        if self.config.random_negatives:
            made.add_negatives(self.pool, members)
        return made.finished(self.pool.sources[int(source)])

    def _batches_of(self, groups: int) -> int:
        """Whole batches of a source; one smaller batch if it has fewer groups than that."""
        return groups // self.config.size or int(groups > 1)

    def _blocks_of(self, epoch: int) -> NDArray[np.int64]:
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, _ORDER, epoch])
            self._order = epoch, rng.permutation(self._blocks)
        return self._order[1]

    def _groups_of(self, epoch: int, source: int) -> NDArray[np.int64]:
        if (epoch, source) not in self._shuffled:
            if any(known != epoch for known, _ in self._shuffled):
                self._shuffled.clear()
            rng = np.random.default_rng([self.seed, _ORDER, epoch, source])
            self._shuffled[epoch, source] = rng.permutation(self._members[source])
        return self._shuffled[epoch, source]


class _Batch:
    def __init__(self, config: BatchConfig, rng: np.random.Generator) -> None:
        self.config, self.rng = config, rng
        self.keys: list[str] = []
        self.queries: list[str] = []
        self.positives: list[str] = []
        self.owners: list[int] = []
        self.negatives: list[str] = []
        self.texts: set[str] = set()

    def add(self, group: CaptionGroup) -> bool:
        """Draw captions of a group; ``False`` if the batch has one of the texts, or the group, already."""
        query, *positives = _draw(group.captions, self.config, self.rng)
        texts = {caption.text for caption in (query, *positives)}
        if group.key in self.keys or texts & self.texts:
            return False
        self.owners += [len(self.queries)] * len(positives)
        self.keys.append(group.key)
        self.queries.append(query.text)
        self.positives += [caption.text for caption in positives]
        self.texts |= texts
        if group.negatives:
            self.negatives.append(group.negatives[int(self.rng.integers(len(group.negatives)))])
        return True

    def add_negatives(self, pool: CaptionPool, members: NDArray[np.int64]) -> None:
        for _ in self.queries:
            group = pool[int(members[self.rng.integers(len(members))])]
            if group.key not in self.keys:
                self.negatives.append(group.captions[int(self.rng.integers(len(group.captions)))].text)

    def finished(self, source: str) -> CaptionBatch:
        negatives = dict.fromkeys(text for text in self.negatives if text not in self.texts)
        return CaptionBatch(
            tuple(self.keys),
            tuple(self.queries),
            tuple(self.positives),
            np.array(self.owners, np.int64),
            tuple(negatives),
            source,
        )


def _draw(captions: Sequence[Caption], config: BatchConfig, rng: np.random.Generator) -> list[Caption]:
    """A query and its positives, all different; a caption that is called a query stays the query."""
    shuffled = [captions[number] for number in rng.permutation(len(captions)).tolist()]
    shuffled.sort(key=lambda caption: caption.kind != "query")
    wanted = config.positives + 1
    if config.pairing == "within_language":
        languages = [caption.language for caption in shuffled]
        # The first language in random order that has two: a language counts once, not by its captions.
        order = list(dict.fromkeys(languages))
        several = [language for language in order if languages.count(language) > 1]
        if several:
            chosen = several[int(rng.integers(len(several)))]
            return [caption for caption in shuffled if caption.language == chosen][:wanted]
    elif config.pairing != "any":
        shuffled = _spread(shuffled, config.pairing, rng)
    return shuffled[:wanted]


def _spread(captions: Sequence[Caption], pairing: Pairing, rng: np.random.Generator) -> list[Caption]:
    """The same captions with those of different languages (or kinds) first, the languages in random order."""
    by_label: dict[str | None, list[Caption]] = {}
    for caption in captions:
        by_label.setdefault(caption.language if pairing == "across_languages" else caption.kind, []).append(
            caption
        )
    labels = list(by_label)
    order = [labels[number] for number in rng.permutation(len(labels)).tolist()]
    if captions[0].kind == "query":
        first = captions[0].language if pairing == "across_languages" else captions[0].kind
        order.sort(key=lambda label: label != first)
    found = []
    while any(by_label.values()):
        found += [by_label[label].pop(0) for label in order if by_label[label]]
    return found
