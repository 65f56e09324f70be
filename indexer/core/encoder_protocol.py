"""The protocol of encoders: all that the indexer knows of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EncoderIdentity(Protocol):
    """Which encoder made the vectors."""

    @property
    def name(self) -> str:
        """What ``load_encoder`` calls it."""

    @property
    def dim(self) -> int:
        """Length of its vectors."""

    def identity(self) -> Mapping[str, str | int]:
        """What an index stores: ``name``, and what it compares: ``dim``, hashes, preprocessing, ..."""


class Prepared(Protocol):
    """A decoded image, ready for the model."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Shape: (size, size, 3), uint8, RGB; of any size if the encoder collates images itself."""

    @property
    def width(self) -> int:
        """Width of the original image as it is shown (after its EXIF rotation), in pixels."""

    @property
    def height(self) -> int:
        """Height of the original image as it is shown, in pixels."""


class ImageEncoder(Protocol):
    """Anything that turns image bytes into unit vectors. ``llm2clip.encoders.Encoder`` is one."""

    @property
    def info(self) -> EncoderIdentity:
        """Which encoder this is."""

    def prepare(self, image: bytes, /, *, draft: bool = False) -> Prepared:
        """Decode one image; called from several threads at once.

        With ``draft`` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as its shorter side keeps twice the
        model's resolution.

        Raises:
            ValueError: the bytes are no image that can be read; the message is the reason, in a few words.
        """

    def encode_prepared(
        self, pixels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], /
    ) -> NDArray[np.float32]:
        """One forward pass. Shape: (n, size, size, 3), uint8 -> (n, dim), float32, unit rows.

        Images of different sizes come as a list.
        """


class TextEncoder(Protocol):
    """Anything that turns captions into queries."""

    def encode_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Shape: (num_texts, dim), float32, unit rows."""
