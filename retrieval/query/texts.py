"""Texts as they are typed and pasted, to vectors: characters that cannot be seen, and more than an encoder reads."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders import Encoder
    from llm2clip.retrieval.query.vector_cache import VectorCache

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
_SENTENCE = re.compile(r"(?<=[.!?;:…])\s+|(?<=[。！？；：])|(?<=[।॥؟۔])\s*|\n+")
_SPACE = re.compile(r"\s+")


class LongTextWarning(UserWarning):
    """A text is longer than the encoder reads at once, and was read in parts."""


def text_vectors(
    texts: Sequence[str], encoder: Encoder, *, known: VectorCache | None = None
) -> NDArray[np.float32]:
    """Unit vectors of texts; one that is too long is the mean of its parts, weighted by their tokens.

    ``known`` has vectors of texts that were encoded before.

    Returns:
        Shape: (len(texts), dim), float32.

    Raises:
        ValueError: A text is empty, blank or no valid Unicode.

    Warns:
        LongTextWarning: For each text that was read in parts.
    """
    import numpy as np

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        return known.encode(texts, encoder=encoder) if known else encoder.encode_texts(texts)

    limit = encoder.info.max_text_tokens
    if all(4 * len(text) <= limit for text in texts):  # no tokenizer makes more than four of a character
        return encode(texts)
    tokens = encoder.count_tokens(texts)
    if max(tokens, default=0) <= limit:
        return encode(texts)
    parts = [
        split(text, encoder) if count > limit else [text] for text, count in zip(texts, tokens, strict=True)
    ]
    encoded = encode([part for each in parts for part in each])
    vectors = np.zeros((len(texts), encoded.shape[1]), dtype=np.float32)
    at = 0
    for row, each in enumerate(parts):
        own, at = encoded[at : at + len(each)], at + len(each)
        mean = own[0]
        if len(each) > 1:
            warnings.warn(
                f"the text has {tokens[row]:,} tokens, and {encoder.info.name} reads {limit} at once: it was read in "
                f"{len(each)} parts, and their vectors were averaged",
                LongTextWarning,
                stacklevel=3,
            )
            total = np.array(encoder.count_tokens(each), dtype=np.float64) @ own.astype(np.float64)
            mean = (total / np.linalg.norm(total)).astype(np.float32)
        vectors[row] = mean
    return vectors


def split(text: str, encoder: Encoder) -> list[str]:
    """A text in parts that the encoder reads whole, cut between sentences, else between words, near the middle."""
    text = text.strip()
    if len(text) < 2 or encoder.count_tokens([text])[0] <= encoder.info.max_text_tokens:
        return [text] if text else []
    for boundary in (_SENTENCE, _SPACE):
        places = [found.end() for found in boundary.finditer(text) if 0 < found.end() < len(text)]
        if places:
            middle = min(places, key=lambda place: abs(2 * place - len(text)))
            break
    else:
        middle = len(text) // 2
    return split(text[:middle], encoder) + split(text[middle:], encoder)


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
