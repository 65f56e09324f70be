"""A deterministic encoder for tests, without a model and without torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from llm2clip.encoders.core.base import Encoder, EncoderInfo
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage

COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
}
"""Colour words and their R, G, B."""

_HEX = re.compile(r"#([0-9a-f]{6})\b")
_WORD = re.compile(r"[^\W_]+")
_NOISE = 0.05


class FakeEncoder(Encoder):
    """Sees the mean colour of an image, and reads the colour words of a text. Deterministic.

    An image's vector is its mean colour plus a little noise that depends on the pixels only, so equal
    images are equal and different images differ. A text's vector is the mean of the colours it names
    (``"color:red"``, ``"a red car"``, ``"#ff8000"``); a text that names none gets a vector made from its
    characters. Words are its tokens.
    """

    def __init__(
        self,
        *,
        name: str = "fake",
        dim: int = 16,
        image_size: int = 8,
        max_text_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        """Another ``seed`` is another encoder: other noise, another ``weights_sha256``."""
        if dim < 4:
            raise ValueError(f"dim must be at least 4, got {dim}")
        self._info = EncoderInfo(
            name=name,
            family="fake",
            dim=dim,
            image_size=image_size,
            max_text_tokens=max_text_tokens,
            weights_sha256=hashlib.sha256(f"fake {seed} {dim}".encode()).hexdigest(),
            settings_sha256=hashlib.sha256(f"fake {max_text_tokens}".encode()).hexdigest(),
            preprocessing=f"rgb-on-white/pad-square/bicubic-{image_size}/mean.5std.5",
            parameters=0,
            languages=("mul",),
            licence="MIT",
            note="knows colours; for tests",
        )
        self._seed = seed
        self._lock = Lock()
        self.prepared = 0
        """Images prepared so far."""
        self.image_batches: list[int] = []
        """Size of each forward pass over images so far."""
        self.text_batches: list[int] = []
        """Size of each forward pass over texts so far."""

    @property
    def info(self) -> EncoderInfo:
        """What this encoder is."""
        return self._info

    def _prepare(self, image: ImageSource, *, draft: bool) -> PreparedImage:
        # Late: tests that use no images need no Pillow.
        from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode

        prepared = Preprocess(size=self._info.image_size, mode=ResizeMode.PAD_SQUARE).prepare(
            image, draft=draft
        )
        with self._lock:
            self.prepared += 1
        return prepared

    def _image_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.image_batches.append(len(pixels))
        vectors = np.stack([_NOISE * self._noise(image.tobytes()) for image in pixels])
        vectors[:, :3] += pixels.mean(axis=(1, 2)) / 127.5 - 1
        return vectors.astype(np.float32)

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.text_batches.append(len(texts))
        return np.stack([self._read(text) for text in texts]).astype(np.float32)

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def _read(self, text: str) -> NDArray[np.float64]:
        text = " ".join(text.split()[: self._info.max_text_tokens]).lower()
        named = [COLOURS[word] for word in _WORD.findall(text) if word in COLOURS]
        named += [(r, g, b) for r, g, b in map(bytes.fromhex, _HEX.findall(text))]
        vector = np.zeros(self._info.dim)
        if named:
            vector[:3] = np.mean(named, axis=0) / 127.5 - 1
        return vector if vector.any() else self._noise(text.encode())

    def _noise(self, content: bytes) -> NDArray[np.float64]:
        digest = hashlib.sha256(content + str(self._seed).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(self._info.dim)
