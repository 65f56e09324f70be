"""An encoder put together from a side for images and a side for texts, each loaded when it is first used.

All baselines with two towers are this one class: their sides may come from one file, from two repositories, or
from two libraries.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor, nn

from llm2clip.encoders.core.base import Encoder, EncoderInfo, Runtime
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage
from llm2clip.encoders.images.preprocess import Preprocess
from llm2clip.encoders.text.clip_tokenizer import TokenReader

if TYPE_CHECKING:
    from numpy.typing import NDArray


@final
class LazyModule:
    """A module that is loaded once, when it is first asked for; safe to ask for from several threads."""

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load = load
        self._module: nn.Module | None = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self._module is not None

    def __call__(self) -> nn.Module:
        """The module, loaded now if need be."""
        with self._lock:
            if self._module is None:
                self._module = self._load()
            return self._module


@final
class ImageTower:
    """Images to vectors."""

    def __init__(
        self,
        load: Callable[[], nn.Module],
        *,
        preprocess: Preprocess,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Put it together; nothing is loaded yet.

        Args:
            load: Gives a module from normalised pixels (B, 3, S, S) to vectors (B, dim).
            preprocess: What is done to an image first.
            dtype: Of the arithmetic.
            device: Where the module is.
        """
        self.module = LazyModule(load)
        self.preprocess = preprocess
        self.dtype = dtype
        self.device = device

    @cached_property
    def _levels(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in the levels of 8-bit pixels."""
        mean, std = (
            torch.tensor(values, device=self.device).mul_(255)
            for values in (self.preprocess.mean, self.preprocess.std)
        )
        return mean, std

    def normalised(self, pixels_BSS3: NDArray[np.uint8]) -> Tensor:
        """What the module reads. Shape: (B, S, S, 3), uint8 -> (B, 3, S, S), in the arithmetic's dtype."""
        mean, std = self._levels
        # A copy: torch warns of arrays that are read-only, such as memory maps.
        batch = torch.tensor(np.ascontiguousarray(pixels_BSS3), device=self.device)
        # In this order of axes the image lies in memory channels last, which convolutions like best.
        return batch.float().sub_(mean).div_(std).permute(0, 3, 1, 2).to(self.dtype)

    def vectors(self, pixels_BSS3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Shape: (B, S, S, 3), uint8 -> (B, dim), float32, any scale."""
        module = self.module()
        with torch.inference_mode():
            return to_array(module(self.normalised(pixels_BSS3)))


class AbstractTextSide(ABC):
    """Texts to vectors."""

    @property
    @abstractmethod
    def loaded(self) -> bool:
        """Whether its weights are in memory."""

    @abstractmethod
    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""

    @abstractmethod
    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""


@final
class TowerTextSide(AbstractTextSide):
    """Texts through a tokenizer and a tower."""

    def __init__(
        self,
        load: Callable[[], nn.Module],
        *,
        reader: Callable[[], TokenReader],
        device: torch.device,
    ) -> None:
        """Put it together; nothing is loaded yet.

        Args:
            load: Gives a module from token ids (B, L) and a mask (B, L) or ``None`` to vectors (B, dim).
            reader: Gives the tokenizer.
            device: Where the module is.
        """
        self.module = LazyModule(load)
        self._make_reader = reader
        self.device = device

    @cached_property
    def reader(self) -> TokenReader:
        """The tokenizer, read now if need be."""
        return self._make_reader()

    @property
    def loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self.module.loaded

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""
        return self.reader.count(texts)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""
        ids, mask = self.reader.batch(texts)
        module = self.module()
        with torch.inference_mode():
            return to_array(module(ids.to(self.device), None if mask is None else mask.to(self.device)))


@final
class DualEncoder(Encoder):
    """An encoder with a side for images and one for texts; make one with ``load_encoder``."""

    def __init__(
        self, *, images: ImageTower, texts: AbstractTextSide, describe: Callable[[], EncoderInfo]
    ) -> None:
        """Put it together; nothing is loaded yet.

        Args:
            images: One side.
            texts: The other, of vectors as long.
            describe: Says what the encoder is.
        """
        self.images = images
        self.texts = texts
        self._describe = describe

    @cached_property
    def _info(self) -> EncoderInfo:
        return self._describe()

    @property
    def info(self) -> EncoderInfo:
        """What this encoder is."""
        return self._info

    @property
    def runtime(self) -> Runtime:
        """Where it computes, and in which precision."""
        dtype = str(self.images.dtype).removeprefix("torch.")
        return Runtime(device=str(self.images.device), image_dtype=dtype, text_dtype=dtype)

    @property
    def loaded_sides(self) -> frozenset[str]:
        """Which of ``"vision"`` and ``"text"`` have their weights in memory."""
        sides = {"vision": self.images.module.loaded, "text": self.texts.loaded}
        return frozenset(name for name, loaded in sides.items() if loaded)

    def _prepare(self, image: ImageSource) -> PreparedImage:
        return self.images.preprocess.prepare(image)

    def _image_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.images.vectors(pixels)

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.texts.vectors(texts)

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.texts.count(texts)


def to_array(vectors: Tensor) -> NDArray[np.float32]:
    """A tensor of any float dtype on any device, as an array."""
    array: NDArray[np.float32] = vectors.float().cpu().numpy()
    return array
