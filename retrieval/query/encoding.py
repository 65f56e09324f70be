"""Texts of any length to vectors: those that are too long for the encoder are read in parts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders import Encoder

_SENTENCE = re.compile(r"(?<=[.!?;:…])\s+|(?<=[。！？；：])|(?<=[।॥؟۔])\s*|\n+")
_SPACE = re.compile(r"\s+")


class LongTextWarning(UserWarning):
    """A text is longer than the encoder reads at once, and was read in parts."""


def text_vectors(texts: Sequence[str], encoder: Encoder) -> NDArray[np.float32]:
    """Unit vectors of texts; one that is too long is the mean of its parts, weighted by their tokens.

    Returns:
        Shape: (len(texts), dim), float32.

    Raises:
        ValueError: A text is empty, blank or no valid Unicode.

    Warns:
        LongTextWarning: For each text that was read in parts.
    """
    import numpy as np

    limit = encoder.info.max_text_tokens
    if all(4 * len(text) <= limit for text in texts):  # no tokenizer makes more than four of a character
        return encoder.encode_texts(texts)
    tokens = encoder.count_tokens(texts)
    if max(tokens, default=0) <= limit:
        return encoder.encode_texts(texts)
    parts = [
        split(text, encoder) if count > limit else [text] for text, count in zip(texts, tokens, strict=True)
    ]
    encoded = encoder.encode_texts([part for each in parts for part in each])
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
