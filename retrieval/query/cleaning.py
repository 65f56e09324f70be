"""Queries as they are typed and pasted: letters of other widths, and characters that cannot be seen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner."""
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0]"
)
"""Soft hyphens, fillers, zero-width characters and marks of direction."""
_SEPARATORS = re.compile("[\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")
_LETTERS = re.compile(
    "[\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u17ff\u1800-\u18af\ufb50-\ufdff\ufe70-\ufefc]"
)
"""Arabic, Indic, Burmese, Khmer and Mongolian scripts, in which joiners are part of the spelling."""
_KEPT = re.compile("[\u0e33\u0eb3\u3297\u3299\U0001f000-\U0001faff]|.[\ufe0e\ufe0f]", re.DOTALL)
"""What compatibility forms would spell otherwise than people do: Thai and Lao AM; or turn from emoji into letters."""


def cleaned(text: str) -> str:
    """A query without invisible characters, in Unicode's compatibility form NFKC.

    Full-width letters become ordinary ones. Emoji stay as they are, with the joiners between their parts, and so do
    joiners within words of scripts that spell with them.
    """
    visible = _INVISIBLE.sub(lambda found: _kept(found, text), _SEPARATORS.sub(" ", text))
    parts, end = [], 0
    for kept in _KEPT.finditer(visible):
        parts += [unicodedata.normalize("NFKC", visible[end : kept.start()]), kept[0]]
        end = kept.end()
    return "".join([*parts, unicodedata.normalize("NFKC", visible[end:])])


def meant(texts: Sequence[str]) -> list[str]:
    """Texts as they were meant.

    Raises:
        ValueError: One is empty, blank or no text.
    """
    _check(texts)
    found = [text if text.isascii() else cleaned(text) for text in texts]
    _check(found)
    return found


def _check(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ValueError(
                f"query {number} must be text, got {type(text).__name__}; for images use search_images"
            )
        if not text.strip():
            which = "the query" if len(texts) == 1 else f"query {number} of {len(texts)}"
            raise ValueError(f"{which} is empty; give at least one word, such as 'bicycle'")


def _kept(found: re.Match[str], text: str) -> str:
    """The character itself if it joins what stands around it, else nothing."""
    before, after = text[: found.start()][-1:], text[found.end() :][:1]
    if found[0] not in _JOINERS or not before or not after:
        return ""
    if found[0] == "\u200d" and _pictorial(before) and _pictorial(after):
        return found[0]
    return found[0] if _LETTERS.match(before) and _LETTERS.match(after) else ""


def _pictorial(char: str) -> bool:
    """Whether a character is, or ends, an emoji."""
    return char >= "\U0001f000" or char in "\ufe0f\u20e3" or unicodedata.category(char) == "So"
