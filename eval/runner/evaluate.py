"""Measure one encoder on one set of images and captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.datasets.tar_images import CaptionedImages, TarImage
from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.recall import RetrievalMetrics, Unmatched, retrieval_metrics

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder, ImageSource

_BATCH = 256


class TextEncoder(Protocol):
    """The text tower of an encoder."""

    def encode_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Shape: (texts, dim), float32, unit rows."""

    def count_tokens(self, texts: Sequence[str], /) -> list[int]:
        """Tokens of each text, as the encoder counts them."""


class RememberedTexts:
    """A text tower that encodes no text twice; vectors are kept in memory as long as this object."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._known: dict[str, NDArray[np.float32]] = {}
        self.count_tokens = encoder.count_tokens

    def encode_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Shape: (texts, dim), float32, unit rows."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder.encode_texts(new), strict=True))
        return np.stack([self._known[text] for text in texts])


def evaluate(
    encoder: Encoder,
    dataset: CaptionedImages,
    *,
    ks: Sequence[int] = (1, 5, 10),
    unmatched: Unmatched | None = None,
    progress: Callable[[int], None] | None = None,
) -> RetrievalMetrics:
    """Encode images and texts of a set and measure retrieval in both directions.

    Texts are passed verbatim: no prompt, no lower-casing. Scores are inner products of unit vectors.

    Args:
        encoder: Anything made by ``load_encoder``.
        dataset: Images, captions, and which belong together; see ``read_captioned``.
        ks: Lengths of answer lists.
        unmatched: What to do with images that have no caption; needed only when there are some.
        progress: Called with the number of images done since the last call.

    Raises:
        ValueError: As ``retrieval_metrics``; also for an image that cannot be read (an evaluation over fewer
            images than the set has would not be comparable).
    """
    images = encode_images(encoder, dataset.images, progress=progress)
    pair = Embeddings(texts=encoder.encode_texts(dataset.texts), images=images)
    return retrieval_metrics(pair, positives=dataset.positives, ks=ks, unmatched=unmatched)


def encode_images(
    encoder: Encoder,
    images: Sequence[TarImage | ImageSource],
    *,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Encode images a few hundred at a time. Shape: (images, dim), float32, unit rows."""
    vectors = np.empty((len(images), encoder.info.dim), dtype=np.float32)
    for start in range(0, len(images), _BATCH):
        some = images[start : start + _BATCH]
        batch = [image.read() if isinstance(image, TarImage) else image for image in some]
        vectors[start : start + len(batch)] = encoder.encode_images(batch)
        if progress:
            progress(len(batch))
    return vectors
