"""Short texts that nano's language model learns from, each with the images it fits."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from llm2clip.train.synthetic.emoji import LANGUAGES, Emoji
from llm2clip.train.synthetic.phrases import PAIR_JOINS, QUERY_FRAMES


@dataclass(frozen=True)
class Text:
    """A text and the emoji it fits, equally well."""

    text: str
    language: str
    images: tuple[int, ...]


def load_descriptions(emoji: Sequence[Emoji]) -> list[Text]:
    """The hand-written descriptions of ``train/data``.

    Lines are ``emoji<TAB>language<TAB>sentence``; the same sentence on several lines fits several emoji.
    """
    index = {_bare(item.char): number for number, item in enumerate(emoji)}
    fits: dict[tuple[str, str], set[int]] = defaultdict(set)
    for path in sorted(resources.files("llm2clip.train").joinpath("data").iterdir(), key=lambda p: p.name):
        if not path.name.endswith(".tsv"):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            char, language, sentence = line.split("\t")
            if _bare(char) in index:
                fits[language, sentence].add(index[_bare(char)])
    return [
        Text(sentence, language, tuple(sorted(found))) for (language, sentence), found in sorted(fits.items())
    ]


def _bare(char: str) -> str:
    return char.replace("\ufe0f", "")


def strip_accents(text: str) -> str:
    """The text without Latin diacritics; other scripts keep their marks."""
    latin = "\u00c0", "\u1eff"
    return "".join(
        unicodedata.normalize("NFD", char)[0] if latin[0] <= char <= latin[1] else char for char in text
    )


class TextPool:
    """All short texts by kind, with sampling.

    Kinds: names (CLDR short names), keywords (with every emoji that has it in that language), pairs (two keywords of
    one emoji), descriptions (hand-written).
    """

    def __init__(self, emoji: Sequence[Emoji], descriptions: Sequence[Text]) -> None:
        self.emoji = emoji
        self.descriptions = list(descriptions)
        self.names = [
            Text(spelling, language, (index,))
            for index, item in enumerate(emoji)
            for language, name in item.names.items()
            for spelling in _spellings(name)
        ]
        self.by_keyword: dict[tuple[str, str], tuple[int, ...]] = {}
        owners: dict[tuple[str, str], set[int]] = defaultdict(set)
        for index, item in enumerate(emoji):
            for language, words in item.keywords.items():
                for word in words:
                    owners[language, word.lower()].add(index)
        self.by_keyword = {key: tuple(sorted(found)) for key, found in owners.items()}
        self.keywords = [Text(word, language, found) for (language, word), found in self.by_keyword.items()]
        kinds = {"names": self.names, "keywords": self.keywords, "descriptions": self.descriptions}
        self._weights = {kind: _language_weights(texts) for kind, texts in kinds.items()}

    def sample(self, count: int, rng: np.random.Generator) -> list[Text]:
        """Draw names (40 %), keywords (20 %), pairs (15 %) and descriptions (25 %), many of them in a query's frame."""
        kinds = rng.choice(4, count, p=(0.40, 0.20, 0.15, 0.25))
        drawn: list[Text] = []
        for kind, source, framed in ((0, "names", 0.25), (1, "keywords", 0.5), (3, "descriptions", 0.15)):
            texts: list[Text] = getattr(self, source)
            number = int((kinds == kind).sum())
            if not texts or not number:
                continue
            for position in np.searchsorted(self._weights[source], rng.random(number)):
                drawn.append(_framed(texts[min(int(position), len(texts) - 1)], rng, framed))
        while len(drawn) < count:
            drawn.append(self._pair(rng))
        for row in np.flatnonzero(rng.random(count) < 0.05).tolist():
            item = drawn[row]
            drawn[row] = Text(strip_accents(item.text), item.language, item.images)
        return drawn

    def _pair(self, rng: np.random.Generator) -> Text:
        while True:
            index = int(rng.integers(len(self.emoji)))
            item = self.emoji[index]
            language = "en" if rng.random() < 0.15 else LANGUAGES[int(rng.integers(len(LANGUAGES)))]
            words = item.keywords.get(language, ())
            if len(words) >= 2:
                break
        first, second = (words[int(i)] for i in rng.choice(len(words), 2, replace=False))
        joins = PAIR_JOINS.get(language, ("{} {}",))
        text = joins[int(rng.integers(len(joins)))].format(first, second)
        both = set(self.by_keyword[language, first.lower()]) & set(self.by_keyword[language, second.lower()])
        return _framed(Text(text, language, tuple(sorted(both))), rng, 0.3)


def _spellings(name: str) -> list[str]:
    """The name, and ``Chad flag`` for qualified names such as ``flag: Chad``."""
    head, mark, tail = name.partition(": ")
    if not mark:
        head, mark, tail = name.partition("：")
    tail = tail.strip()
    return [name] if not tail else [name, f"{tail} {head}"]


def _language_weights(texts: Sequence[Text]) -> NDArray[np.float64]:
    weight = dict.fromkeys(LANGUAGES, 1.0) | dict.fromkeys(QUERY_FRAMES, 1.5) | {"en": 3.0}
    total = np.cumsum([weight.get(text.language, 1.0) for text in texts])
    return total / total[-1] if len(total) else total


def _framed(text: Text, rng: np.random.Generator, share: float) -> Text:
    frames = QUERY_FRAMES.get(text.language)
    if frames is None or rng.random() >= share:
        return text
    return Text(frames[int(rng.integers(len(frames)))].format(text.text), text.language, text.images)


def target_matrix(texts: Sequence[Text], images: int) -> NDArray[np.float32]:
    """Target distribution of each text, uniform over the images it fits. Shape: (texts, images)."""
    target = np.zeros((len(texts), images), dtype=np.float32)
    for row, text in enumerate(texts):
        target[row, list(text.images)] = 1 / len(text.images)
    return target
