"""What was asked and what was found: values that a search fills and the table, JSON and gallery show."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llm2clip.indexer import Hit

# First and last code point of a script, and the language most often written in it. Scripts shared by many
# languages (Latin above all) are left out: no guess is better than a wrong one.
_SCRIPTS: tuple[tuple[int, int, str], ...] = (
    (0x0370, 0x03FF, "el"),
    (0x0400, 0x04FF, "ru"),
    (0x0530, 0x058F, "hy"),
    (0x0590, 0x05FF, "he"),
    (0x0600, 0x06FF, "ar"),
    (0x0900, 0x097F, "hi"),
    (0x0980, 0x09FF, "bn"),
    (0x0A00, 0x0A7F, "pa"),
    (0x0A80, 0x0AFF, "gu"),
    (0x0B80, 0x0BFF, "ta"),
    (0x0C00, 0x0C7F, "te"),
    (0x0C80, 0x0CFF, "kn"),
    (0x0D00, 0x0D7F, "ml"),
    (0x0D80, 0x0DFF, "si"),
    (0x0E00, 0x0E7F, "th"),
    (0x10A0, 0x10FF, "ka"),
    (0x1200, 0x137F, "am"),
    (0x1780, 0x17FF, "km"),
    (0x3040, 0x30FF, "ja"),
    (0x4E00, 0x9FFF, "zh"),
    (0xAC00, 0xD7AF, "ko"),
)
# Letters that tell one language from the main one of its script.
_TELLTALES: dict[str, tuple[frozenset[str], str]] = {
    "ar": (frozenset("پچژگک"), "fa"),
    "ru": (frozenset("іїєґІЇЄҐ"), "uk"),
}


@dataclass(frozen=True, kw_only=True)
class Query:
    """One thing that was asked."""

    kind: Literal["text", "image"]
    """Whether ``label`` is the query itself or the name of an image."""
    label: str
    """The query text, or the path or name of the query image."""
    language: str | None = None
    """BCP 47 tag of the text, if known."""
    gloss: str | None = None
    """What it means, for those who do not read its language."""
    image: bytes | None = None
    """The encoded query image, for the gallery."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A query and its hits, best first."""

    query: Query
    hits: Sequence[Hit]


def text_query(text: str, *, language: str | None = None, gloss: str | None = None) -> Query:
    """A text query, its language guessed from its script where that settles it."""
    return Query(kind="text", label=text, language=language or guess_language(text), gloss=gloss)


def guess_language(text: str) -> str | None:
    """BCP 47 tag of the language a text is probably written in, or ``None`` where the script does not tell.

    Good enough to choose a font and a caption; Latin script always gives ``None``.
    """
    counts = Counter(language for char in text if (language := _language_of(char)))
    if not counts:
        return None
    letters = sum(unicodedata.category(char)[0] == "L" for char in text)
    if 2 * counts.total() < letters:
        return None
    language = "ja" if counts["ja"] else counts.most_common(1)[0][0]
    telltale = _TELLTALES.get(language)
    if telltale and telltale[0] & set(text):
        return telltale[1]
    return language


def _language_of(char: str) -> str | None:
    code = ord(char)
    return next((language for first, last, language in _SCRIPTS if first <= code <= last), None)


def caption_for(hit: Hit, language: str | None) -> tuple[str | None, str | None]:
    """The hit's caption and its language, preferring ``language`` where the metadata has it.

    The sample corpus keeps captions by language under ``names`` (emoji) or ``captions`` (scenes); other
    corpora may do the same. Anything else there is ignored.

    Returns:
        The caption (``None`` if the image has none), and its BCP 47 tag if known.
    """
    if language:
        for field in ("names", "captions"):
            by_language = hit.metadata.get(field)
            if isinstance(by_language, Mapping):
                caption = by_language.get(language)
                if isinstance(caption, str) and caption.strip():
                    return caption, language
    return hit.caption, None
