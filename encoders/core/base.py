"""The abstract encoder: images and texts in, unit vectors of one shared space out.

Batching, sorting by length, checks and normalisation live here once. Imports neither torch nor PIL.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np

from llm2clip.encoders.core.errors import EncodingError, ImageError, TextTooLongWarning
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

Parity = Literal["native", "upstream"]


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What an encoder is, for people and for the manifest of an index."""

    name: str
    """What ``load_encoder`` calls it; a local folder's name otherwise."""
    family: str
    """Architecture: ``"llm2clip"``, ``"clip"``, ``"fake"``, ..."""
    dim: int
    """Length of its vectors."""
    image_size: int
    """Side of the square image it reads, in pixels; 0 if it reads images of any shape, or none."""
    max_text_tokens: int
    """Most tokens of a text that are read, as ``count_tokens`` counts them: with begin and end tokens in CLIP, with
    the footer but without begin token and header in LLM2CLIP."""
    weights_sha256: str
    """SHA-256 of the weights, in hexadecimal."""
    settings_sha256: str
    """SHA-256 of everything else that shapes the vectors: configuration, tokenizer, text wrapper."""
    preprocessing: str
    """How images are prepared, e.g. ``"rgb-on-white/pad-square/bicubic-64/mean.5std.5"``."""
    parameters: int
    """Number of parameters of both towers."""
    languages: tuple[str, ...]
    """Language codes of the texts it was trained on."""
    licence: str
    """Licence of the weights."""
    note: str
    """One line: what it is good at and what it is not."""

    def identity(self) -> dict[str, str | int]:
        """What an index stores of an encoder; vectors are comparable if all but ``name`` is equal."""
        return {
            "name": self.name,
            "family": self.family,
            "dim": self.dim,
            "weights_sha256": self.weights_sha256,
            "settings_sha256": self.settings_sha256,
            "preprocessing": self.preprocessing,
        }


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where an encoder computes, and in which precision."""

    device: str = "cpu"
    """As torch names it: ``"cpu"``, ``"cuda"``, ``"cuda:1"``."""
    image_dtype: str = "float32"
    """Dtype in which images are encoded: ``"float32"``, ``"float16"`` or ``"bfloat16"``."""
    text_dtype: str = "float32"
    """Dtype in which texts are encoded, or what the weights of the language model are quantised to: ``"int8"`` or
    ``"int4"``. Never ``"auto"``: what that was resolved to."""


class Encoder(ABC):
    """Turns images and texts into unit vectors whose inner product says how well they match.

    ``prepare`` may be called from several threads at once, the forward passes from one at a time.
    """

    @property
    @abstractmethod
    def info(self) -> EncoderInfo:
        """What this encoder is."""

    @property
    def runtime(self) -> Runtime:
        """Where it computes, and in which precision; float32 on the CPU unless an encoder says otherwise.

        Raises:
            ModelError: A language model with ``dtype="auto"`` does not fit into memory.
        """
        return Runtime()

    @abstractmethod
    def _prepare(self, image: ImageSource, *, draft: bool) -> PreparedImage:
        """Decode, resize and crop; thread-safe. ``draft`` as in :meth:`prepare`."""

    @abstractmethod
    def _image_batch(self, pixels: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """One forward pass. Shape: (n, size, size, 3), uint8 -> (n, dim), any scale.

        If ``info.image_size`` is 0, the input is a list of what ``_prepare`` gave.
        """

    @abstractmethod
    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One forward pass over texts of similar length, cut to the limit. Shape: (n, dim), any scale."""

    @abstractmethod
    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting, counted as ``info.max_text_tokens`` is."""

    @final
    def prepare(self, image: ImageSource, *, draft: bool = False) -> PreparedImage:
        """Decode an image and resize it for the model; may be called from several threads.

        Args:
            image: File, bytes, PIL image or array.
            draft: Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size if its shorter side keeps twice the model's
                resolution (Pillow's ``draft`` with a ``reducing_gap`` of 2). Faster; vectors differ slightly.

        Raises:
            ImageError: The image cannot be read; the message is the reason, in a few words.
        """
        return self._prepare(image, draft=draft)

    @final
    def encode_prepared(self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """One forward pass over prepared images; the caller chooses how many.

        Args:
            images: ``pixels`` of what :meth:`prepare` returned. Shape: (n, size, size, 3), uint8, or a list of n
                (size, size, 3); where ``info.image_size`` is 0, a list of (height, width, 3) of any sizes.

        Returns:
            Shape: (n, dim), float32, unit rows.

        Raises:
            ValueError: Another shape or dtype.
            EncodingError: A vector is zero or not finite.
        """
        if len(images) == 0:
            return np.zeros((0, self.info.dim), np.float32)
        size = self.info.image_size
        if not size:
            return self._unit_rows(self._image_batch(list(images)), "an image")
        if not isinstance(images, np.ndarray):
            images = np.stack(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"pixels must be uint8 of shape (n, {size}, {size}, 3), got {images.dtype} {images.shape}"
            )
        return self._unit_rows(self._image_batch(images), "an image")

    @final
    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Vectors of images, in their order.

        Args:
            images: Files, bytes, PIL images or arrays.
            batch_size: Images per forward pass.

        Returns:
            Shape: (len(images), dim), float32, unit rows.

        Raises:
            ImageError: An image cannot be read; if several were given, the message says which.
            ValueError: ``batch_size`` is not positive.
        """
        _check_batch(images, batch_size, "images")
        vectors = np.zeros((len(images), self.info.dim), np.float32)
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            pixels = [self._prepare_at(image, start + i, len(images)) for i, image in enumerate(chunk)]
            vectors[start : start + len(chunk)] = self.encode_prepared(pixels)
        return vectors

    @final
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Vectors of texts, in their order; texts of similar length share a forward pass.

        Args:
            texts: Any language the encoder knows; longer texts are cut to ``info.max_text_tokens``.
            batch_size: Texts per forward pass.

        Returns:
            Shape: (len(texts), dim), float32, unit rows.

        Raises:
            ValueError: A text is empty, blank or no valid Unicode, or ``batch_size`` is not positive.
            EncodingError: A vector is zero or not finite.

        Warns:
            TextTooLongWarning: Once per call that cuts texts; says how many tokens of how many were read.
        """
        _check_batch(texts, batch_size, "texts")
        for position, text in enumerate(texts, start=1):
            _check_text(text, f"text {position} of {len(texts)}" if len(texts) > 1 else "the text")
        vectors = np.zeros((len(texts), self.info.dim), np.float32)
        if not texts:
            return vectors
        lengths = self._count_tokens(texts)
        self._warn_of_cuts(texts, lengths)
        order = sorted(range(len(texts)), key=lambda i: lengths[i])
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            vectors[chosen] = self._unit_rows(self._text_batch([texts[i] for i in chosen]), "a text")
        return vectors

    @final
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the encoder counts them against ``info.max_text_tokens``, before cutting."""
        _check_batch(texts, 1, "texts")
        return self._count_tokens(texts) if texts else []

    def _prepare_at(self, image: ImageSource, position: int, total: int) -> NDArray[np.uint8]:
        try:
            return self.prepare(image).pixels
        except ImageError as error:
            which = [f"image {position + 1} of {total}"] if total > 1 else []
            if isinstance(image, str | os.PathLike):
                which.append(os.fspath(image))
            if not which:
                raise
            raise ImageError(f"{', '.join(which)}: {error}") from error

    def _warn_of_cuts(self, texts: Sequence[str], lengths: Sequence[int]) -> None:
        limit = self.info.max_text_tokens
        cut = [position for position, length in enumerate(lengths) if length > limit]
        if not cut:
            return
        longest = max(cut, key=lambda position: lengths[position])
        start = " ".join(texts[longest][:60].split())
        if len(texts) == 1:
            message = f"the text is too long for {self.info.name!r}:"
        else:
            message = f"{len(cut)} of {len(texts)} texts are too long for {self.info.name!r}; of the longest"
            message += f" (number {longest + 1}, {start!r}...)"
        message += f" only the first {limit} of {lengths[longest]} tokens were read"
        warnings.warn(message, TextTooLongWarning, stacklevel=3)

    def _unit_rows(self, vectors: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
        # In float64, as squares of large or small float32 values lie outside float32.
        exact = np.asarray(vectors, dtype=np.float64)
        norms = np.linalg.norm(exact, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not (norms > 0).all():
            raise EncodingError(
                f"encoder {self.info.name!r} gave {kind} vector without a direction (zero or not finite)"
            )
        unit: NDArray[np.float32] = (exact / norms).astype(np.float32)
        return unit


def _check_text(text: str, name: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} is {type(text).__name__}, expected str")
    if not text.strip():
        raise ValueError(f"{name} is empty; give at least one word")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid Unicode: lone surrogate at position {error.start}") from error


def _check_batch(items: Sequence[object], batch_size: int, what: str) -> None:
    if isinstance(items, str | bytes) or not isinstance(items, Sequence):
        raise ValueError(f"{what} must be a list, got one {type(items).__name__}; put it in a list")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
