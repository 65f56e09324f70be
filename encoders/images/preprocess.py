"""Image preprocessing as data, saved with a model and named in every index; and the image tower that uses it.

``native``, the default, turns an image upright, blends it over white and converts it to 8-bit RGB first. ``upstream``
reproduces the original programs: they ignore the EXIF orientation, drop transparency, clip 16 bits at 255, and those
that resize first treat palette indices as brightness (golden case j). Upright 8-bit RGB is the same under both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llm2clip.encoders.core.dual_encoder import NO_GRID, ImageTower, to_array
from llm2clip.encoders.core.errors import ImageError, ModelError
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage
from llm2clip.encoders.images.decode import MAX_PIXELS, decode_by, decode_here, to_rgb
from llm2clip.encoders.images.guard import Decoded

if TYPE_CHECKING:
    from torch import Tensor

_REDUCING_GAP = 2
"""Multiple of the model's resolution that a draft keeps."""
_LONG_STRIP = 16
"""Images with a larger ratio of sides are cropped before they are resized."""


class ResizeMode(StrEnum):
    """How an image is made square."""

    PAD_SQUARE = "pad-square"
    """Fit inside the square, keep the aspect ratio, pad with white."""
    SHORTEST_CROP = "shortest-crop"
    """Resize the shorter side to size, centre-crop the longer one (CLIP)."""
    SQUASH = "squash"
    """Ignore the aspect ratio (SigLIP)."""


class Resample(StrEnum):
    """Filter for resizing; all of them average when shrinking."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Order(StrEnum):
    """Order of conversion and resizing in the original program."""

    CONVERT_FIRST = "convert-first"
    """Convert to RGB, then resize: the image processors of transformers."""
    RESIZE_FIRST = "resize-first"
    """Resize in whatever mode the file has, then convert: EVA-CLIP, Chinese-CLIP's own programs."""


class Crop(StrEnum):
    """Rounding of the crop offset when an odd number of pixels is left over."""

    FLOOR = "floor"
    """Round down: transformers."""
    HALF_EVEN = "half-even"
    """Round half to even: torchvision, and so EVA-CLIP."""


_FILTERS = {
    Resample.BILINEAR: Image.Resampling.BILINEAR,
    Resample.BICUBIC: Image.Resampling.BICUBIC,
    Resample.LANCZOS: Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image file becomes the input of a vision tower."""

    size: int
    """Side of the square in pixels."""
    mode: ResizeMode
    """How the image is made square."""
    resample: Resample = Resample.BICUBIC
    """Filter for resizing."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from R, G, B in 0..1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides R, G, B after that."""
    crop: Crop = Crop.FLOOR
    """Rounding of the offset of a centre crop."""
    order: Order = Order.CONVERT_FIRST
    """Order of the original; only used with ``upstream``."""
    parity: Literal["native", "upstream"] = "native"
    """How images other than upright 8-bit RGB are treated: see above."""

    def __post_init__(self) -> None:
        if self.order is Order.RESIZE_FIRST and self.mode is ResizeMode.PAD_SQUARE:
            raise ValueError("order resize-first goes with shortest-crop or squash, got pad-square")
        if self.parity not in ("native", "upstream"):
            raise ValueError(
                f"parity must be 'native' or 'upstream' (preprocessing 'native' or 'reference'), got {self.parity!r}"
            )
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    @property
    def identifier(self) -> str:
        """Canonical name; two settings have the same one exactly when they do the same.

        Example: ``rgb-on-white/pad-square/bicubic-64/mean.5std.5``.
        """
        colours = "rgb-on-white" if self.parity == "native" else f"upstream-{self.order}"
        crops = self.mode is ResizeMode.SHORTEST_CROP and self.crop is not Crop.FLOOR
        mode = f"{self.mode}-{self.crop}" if crops else str(self.mode)
        numbers = f"mean{_short(self.mean)}std{_short(self.std)}"
        return f"{colours}/{mode}/{self.resample}-{self.size}/{numbers}"

    def prepare(
        self, source: ImageSource, *, draft: bool = False, max_pixels: int = MAX_PIXELS
    ) -> PreparedImage:
        """Decode an image and bring it to size; ``draft`` as in ``Encoder.prepare``. Thread-safe."""
        work = partial(self._fitted, keep=_REDUCING_GAP * self.size if draft else 0, max_pixels=max_pixels)
        done = decode_by(work, source, max_pixels=max_pixels)
        return PreparedImage(
            pixels=np.array(done.image, dtype=np.uint8), width=done.width, height=done.height
        )

    def _fitted(self, content: bytes | Image.Image, *, keep: int, max_pixels: int) -> Decoded:
        """Decode and resize in this process; only the small image has to leave it."""
        native = self.parity == "native"
        image, width, height = decode_here(content, upright=native, draft=keep, max_pixels=max_pixels)
        if not native and self.order is Order.CONVERT_FIRST:
            image = to_rgb(image)
        return Decoded(Image.fromarray(self.resize(image)), width, height)

    def resize(self, image: Image.Image) -> NDArray[np.uint8]:
        """Bring an image to size, and to RGB if it is not. Shape: (size, size, 3), uint8."""
        try:
            square = self._square(image)
        except ValueError as error:
            raise ImageError(f"cannot be resized as {image.mode}") from error
        return np.array(to_rgb(square), dtype=np.uint8)

    def _square(self, image: Image.Image) -> Image.Image:
        if self.mode is ResizeMode.PAD_SQUARE:
            return self._pad_square(image)
        if self.mode is ResizeMode.SHORTEST_CROP:
            return self._shortest_crop(image)
        return image.resize((self.size, self.size), _FILTERS[self.resample])

    def _pad_square(self, image: Image.Image) -> Image.Image:
        longest = max(image.size)
        width, height = (max(1, round(side * self.size / longest)) for side in image.size)
        square = Image.new("RGB", (self.size, self.size), (255, 255, 255))
        fitted = image.resize((width, height), _FILTERS[self.resample])
        square.paste(fitted, ((self.size - width) // 2, (self.size - height) // 2))
        return square

    def _shortest_crop(self, image: Image.Image) -> Image.Image:
        shortest, longest = sorted(image.size)
        if longest > _LONG_STRIP * shortest:
            image = _middle(image, _LONG_STRIP * shortest)
            longest = max(image.size)
        long_side = int(self.size * longest / shortest)
        width, height = (self.size, long_side) if image.width == shortest else (long_side, self.size)
        left, top = self._offset(width), self._offset(height)
        resized = image.resize((width, height), _FILTERS[self.resample])
        return resized.crop((left, top, left + self.size, top + self.size))

    def _offset(self, side: int) -> int:
        spare = side - self.size
        # Python rounds halves to the even neighbour.
        return spare // 2 if self.crop is Crop.FLOOR else round(spare / 2)


def _middle(image: Image.Image, length: int) -> Image.Image:
    """Centre crop of the longer side to at most ``length`` pixels."""
    left, top = max(0, (image.width - length) // 2), max(0, (image.height - length) // 2)
    return image.crop((left, top, min(image.width, left + length), min(image.height, top + length)))


def _short(values: tuple[float, ...]) -> str:
    # Nine significant digits tell any two float32 numbers apart.
    texts = [f"{value:.9g}".removeprefix("0") or "0" for value in values]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)


@runtime_checkable
class _HasCells(Protocol):
    def cells(self, pixels_B3SS: Tensor) -> Tensor:
        """Shape: (B, 3, S, S), normalised pixels -> (B, G, G, dim)."""


@final
class PixelTower(ImageTower):
    """Images through :class:`Preprocess`, then through a module that reads normalised pixels."""

    def __init__(
        self,
        load: Callable[[], Any],
        *,
        preprocess: Preprocess,
        device: object,
        dtype: object,
        found: tuple[str, ...] = (),
    ) -> None:
        """Compose the tower; ``load`` gives a module from normalised pixels (B, 3, S, S) to vectors (B, dim)."""
        super().__init__(load, device=device, dtype=dtype)
        self.preprocess = preprocess
        self._found = found

    @property
    def found(self) -> tuple[str, ...]:
        """What was inferred from its files, in words."""
        return self._found

    def prepare(self, image: ImageSource, *, draft: bool) -> PreparedImage:
        """See ``Encoder.prepare``."""
        return self.preprocess.prepare(image, draft=draft)

    def normalised(self, pixels_BSS3: NDArray[np.uint8]) -> Tensor:
        """Input of the module. Shape: (B, S, S, 3), uint8 -> (B, 3, S, S), ``dtype``."""
        import torch

        mean, std = self._levels
        # A copy: torch warns of arrays that are read-only, such as memory maps.
        batch = torch.tensor(np.ascontiguousarray(pixels_BSS3), device=self.device)
        # In this order of axes the image lies in memory channels last, which convolutions like best.
        normalised = batch.float().sub_(mean).div_(std).permute(0, 3, 1, 2)
        return normalised.to(getattr(torch, self.dtype))

    def vectors(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Shape: (B, S, S, 3), uint8 -> (B, dim), float32, any scale."""
        import torch

        module = self.module()
        with torch.inference_mode():
            return to_array(module(self.normalised(pixels)))

    def cells(self, image: ImageSource) -> NDArray[np.float32]:
        """See ``ImageTower.cells``.

        At twice the size, so that a thing in a quarter of the image is seen as large as one that fills it.
        """
        import torch

        module = self.module()
        if not isinstance(module, _HasCells):
            raise ModelError(NO_GRID)
        whole = replace(self.preprocess, size=2 * self.preprocess.size, mode=ResizeMode.SQUASH)
        pixels = whole.prepare(image).pixels
        with torch.inference_mode():
            return to_array(module.cells(self.normalised(pixels[None]))[0])

    @cached_property
    def _levels(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in the levels of 8-bit pixels."""
        import torch

        mean, std = (
            torch.tensor(values, device=self.device).mul_(255)
            for values in (self.preprocess.mean, self.preprocess.std)
        )
        return mean, std
