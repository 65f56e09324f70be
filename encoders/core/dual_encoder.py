"""How an encoder is loaded and composed: options, device, precision, and two towers read on first use."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, final

from llm2clip.encoders.core.base import Encoder, EncoderInfo, Parity, Runtime
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Preprocessing = Literal["native", "reference"]

_STORED: dict[str, Parity] = {"native": "native", "reference": "upstream", "upstream": "upstream"}
"""Value of ``preprocessing`` -> the word that configurations and index manifests store; the last is an old spelling."""
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of ``load_encoder``; the defaults are its defaults."""

    device: str = "auto"
    """``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ..."""
    dtype: str = "auto"
    """Precision of weights and computation: ``"auto"``, ``"float32"``, ``"float16"``, ``"bfloat16"``; a published
    language model can also be quantised to ``"int8"`` or ``"int4"``."""
    language_model: str | os.PathLike[str] | None = None
    """LLM2CLIP: name or folder of another language model than the one it was trained with."""
    preprocessing: Preprocessing = "native"
    """``"reference"`` prepares texts and images exactly as the original implementation, mistakes included."""

    def __post_init__(self) -> None:
        if self.preprocessing not in _STORED:
            raise ValueError(f"preprocessing must be 'native' or 'reference', got {self.preprocessing!r}")
        if self.parity == "upstream":
            object.__setattr__(self, "preprocessing", "reference")

    @property
    def parity(self) -> Parity:
        """The word for :attr:`preprocessing` that configurations and index manifests store."""
        return _STORED[self.preprocessing]


def pick_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is CUDA if available, else the CPU."""
    import torch

    return torch.device(device_name(name))


def device_name(name: str) -> str:
    """The name of a device that is there, for ``"auto"`` too; loads no torch on a machine without CUDA's driver."""
    if name == "cpu" or (name == "auto" and not _has_cuda_driver()):
        return "cpu"
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}, expected 'auto', 'cpu', 'cuda', 'cuda:1', ...") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use 'cpu'"
        )
    return str(device)


@cache
def _has_cuda_driver() -> bool:
    """Whether torch could find a device that it calls CUDA: NVIDIA's driver or AMD's is there."""
    import ctypes

    for library in ("nvcuda.dll",) if os.name == "nt" else ("libcuda.so.1", "libamdhip64.so"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


def pick_dtype(name: str, *, device: torch.device, stored: str) -> torch.dtype:
    """The dtype of that name; ``"auto"`` is float32 on a CPU (fastest there), else ``stored``."""
    import torch

    dtype: torch.dtype = getattr(torch, dtype_name(name, device=str(device), stored=stored))
    return dtype


def dtype_name(name: str, *, device: str, stored: str) -> str:
    """The name of the dtype that :func:`pick_dtype` gives."""
    if name == "auto":
        name = "float32" if device == "cpu" else stored
    if name not in _DTYPES:
        raise ValueError(f"unknown dtype {name!r}, expected 'auto' or one of {', '.join(_DTYPES)}")
    return name


NO_GRID = "this encoder's image tower has no grid of features that match texts"
"""Why it cannot be said where in an image a query matches."""


class Tower:
    """One half of a :class:`DualEncoder`; its weights are read on first use, once for all threads."""

    def __init__(self, load: Callable[[], Any], *, device: object, dtype: object) -> None:
        """Take what loads the module that computes, and its device and dtype (torch's, or their names)."""
        self.device = str(device)
        self._dtype = str(dtype).removeprefix("torch.")
        self._load = load
        self._module: Any = None
        self._lock = threading.Lock()

    @property
    def dtype(self) -> str:
        """Precision: ``"float32"``, ``"float16"``, ..."""
        return self._dtype

    @property
    def found(self) -> tuple[str, ...]:
        """What was inferred from the files, in words."""
        return ()

    @property
    def loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self._module is not None

    def load(self) -> None:
        """Read what it computes with, unless it is in memory."""
        self.module()

    def module(self) -> Any:  # noqa: ANN401
        """The module that computes; loaded on first use."""
        with self._lock:
            if self._module is None:
                self._module = self._load()
            return self._module


class ImageTower(Tower, ABC):
    """Images to vectors."""

    @abstractmethod
    def prepare(self, image: ImageSource, *, draft: bool) -> PreparedImage:
        """See ``Encoder.prepare``."""

    @abstractmethod
    def vectors(self, pixels: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """Shape: (n, size, size, 3), uint8, or a list of arrays -> (n, dim), float32, any scale."""

    def cells(self, image: ImageSource) -> NDArray[np.float32]:
        """Vectors of the parts of an image in a grid over all of it. Shape: (rows, columns, dim), any scale."""
        raise ModelError(NO_GRID)


class TextTower(Tower, ABC):
    """Texts to vectors."""

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""

    @abstractmethod
    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""

    def features(self, texts: Sequence[str]) -> Any:  # noqa: ANN401
        """Pooled states of the language model of an LLM2CLIP encoder. Shape: (len(texts), width), a tensor."""
        raise ModelError("this encoder has no language model whose states could be stored")

    def project(self, features: Any) -> Any:  # noqa: ANN401
        """States of the language model in the shared space. Shape: (n, width) -> (n, dim), tensors."""
        raise ModelError("this encoder has no adapter that reads states of a language model")


Reader = TypeVar("Reader")


class ReaderTower(TextTower, Generic[Reader]):
    """A text tower whose tokenizer is read apart from its weights, on first use."""

    def __init__(
        self, load: Callable[[], Any], *, reader: Callable[[], Reader], device: object, dtype: object
    ) -> None:
        """``reader`` opens the tokenizer; the rest as for :class:`Tower`."""
        super().__init__(load, device=device, dtype=dtype)
        self._make_reader = reader

    @cached_property
    def reader(self) -> Reader:
        """The tokenizer."""
        return self._make_reader()


@final
class DualEncoder(Encoder):
    """An encoder composed of an image tower and a text tower; ``load_encoder`` makes one."""

    def __init__(
        self,
        image_tower: ImageTower | None,
        text_tower: TextTower,
        *,
        describe: Callable[[], EncoderInfo],
        source: object = None,
    ) -> None:
        """Compose two towers; nothing is loaded yet."""
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.source = source
        self._describe = describe

    @cached_property
    def info(self) -> EncoderInfo:
        """What this encoder is."""
        return self._describe()

    @property
    def runtime(self) -> Runtime:
        """Where it computes, and in which precision."""
        images = self.image_tower
        return Runtime(
            device=self.text_tower.device,
            image_dtype=images.dtype if images else "float32",
            text_dtype=self.text_tower.dtype,
        )

    @property
    def _towers(self) -> dict[str, Tower]:
        images = {"vision": self.image_tower} if self.image_tower else {}
        return {**images, "text": self.text_tower}

    @property
    def found(self) -> tuple[str, ...]:
        """What was inferred from the files, in words; opens the language model."""
        return tuple(line for tower in self._towers.values() for line in tower.found)

    @property
    def loaded_sides(self) -> frozenset[str]:
        """Which of ``"vision"`` and ``"text"`` have their weights in memory."""
        return frozenset(name for name, tower in self._towers.items() if tower.loaded)

    def load_all(self) -> None:
        """Read all weights and the tokenizer now rather than on first use.

        Raises:
            ModelError: Something is missing, damaged, or does not fit into memory.
        """
        for tower in self._towers.values():
            tower.load()
        self.count_tokens(["."])

    def language_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """LLM2CLIP: pooled states of the language model, to be stored. Shape: (len(texts), width), float32, any scale.

        Any number of texts, read in passes of a bounded number of tokens (``preprocessing="reference"``: in one).
        """
        return to_array(self.text_tower.features(texts))

    def encode_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """LLM2CLIP: unit vectors of texts from stored states; the language model is not loaded.

        Args:
            features: Shape: (n, width), float, any scale: from :meth:`language_features`, or the original's
                ``l2v.encode``.
        """
        return self._unit_rows(to_array(self.text_tower.project(features)), "a text")

    def image_cells(self, image: ImageSource) -> NDArray[np.float32]:
        """Unit vectors of the parts of an image, in a grid over all of it.

        Returns:
            Shape: (rows, columns, dim), float32; from the top left.

        Raises:
            ImageError: The image cannot be read.
            ModelError: The image tower has no such grid. Of the encoders here, nano has one.
        """
        cells = self._images.cells(image)
        return self._unit_rows(cells.reshape(-1, cells.shape[-1]), "a part of an image").reshape(cells.shape)

    def _prepare(self, image: ImageSource, *, draft: bool) -> PreparedImage:
        return self._images.prepare(image, draft=draft)

    def _image_batch(self, pixels: Any) -> NDArray[np.float32]:  # noqa: ANN401
        tower = self._images
        tower.module()  # weights first: a shorter traceback when they are damaged
        return tower.vectors(pixels)

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.text_tower.load()
        return self.text_tower.vectors(texts)

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.text_tower.count_tokens(texts)

    @property
    def _images(self) -> ImageTower:
        if self.image_tower is None:
            raise ModelError(
                f"{self.info.name} is a language model only and cannot encode images; load an encoder that uses it"
            )
        return self.image_tower


Llm2ClipEncoder = PublishedEncoder = LanguageEncoder = DualEncoder
"""Former classes, now all :class:`DualEncoder`."""


def to_array(vectors: Any) -> NDArray[np.float32]:  # noqa: ANN401
    """A tensor of any float dtype on any device, or an array, as a float32 array."""
    import numpy as np

    if isinstance(vectors, np.ndarray):
        return vectors.astype(np.float32, copy=False)
    array: NDArray[np.float32] = vectors.float().cpu().numpy()
    return array
