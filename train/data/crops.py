"""RandomResizedCrop of decoded images, a whole batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How training images vary."""

    smallest: float = 0.9
    """Least share of the image's area that is kept; 1: no crop. LLM2CLIP's stage 2: 0.9."""
    ratio: float = 4 / 3
    """Most that a crop's ratio of sides is changed by, either way."""
    mirror: bool = False
    """Mirror half of the images. Captions that say left and right become wrong."""

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1 or self.ratio < 1:
            raise ValueError(
                f"smallest must be in (0, 1] and ratio at least 1, got {self.smallest} and {self.ratio}"
            )

    @property
    def changes(self) -> bool:
        """Whether images are changed at all."""
        return self.smallest < 1 or self.mirror


def crop_boxes(count: int, *, config: CropConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Left, top, width and height as shares of the image. Shape: (count, 4).

    Area and logarithm of the ratio are drawn evenly, as by torchvision's ``RandomResizedCrop``; a box that does not
    fit is drawn again, and is the whole image after ten tries.
    """
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (count, 1))
    if config.smallest == 1:
        return boxes
    waiting = np.arange(count)
    for _ in range(_TRIES):
        if not len(waiting):
            break
        area = rng.uniform(config.smallest, 1, len(waiting))
        ratio = np.exp(rng.uniform(-np.log(config.ratio), np.log(config.ratio), len(waiting)))
        width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
        place = rng.random((2, len(waiting)))
        fits = (width <= 1) & (height <= 1)
        found = np.stack([place[0] * (1 - width), place[1] * (1 - height), width, height], axis=1)
        boxes[waiting[fits]] = found[fits]
        waiting = waiting[~fits]
    return boxes


@dataclass(frozen=True)
class Crops:
    """How each image of a batch is changed."""

    boxes: NDArray[np.float64]
    """Left, top, width and height as shares of the image. Shape: (B, 4)."""
    mirrored: NDArray[np.bool_]
    """Shape: (B,)."""

    def part(self, rows: range | slice) -> Crops:
        """Those of some of the images."""
        chosen = slice(rows.start, rows.stop)
        return Crops(self.boxes[chosen], self.mirrored[chosen])


def draw_crops(count: int, *, config: CropConfig, rng: np.random.Generator) -> Crops:
    """Random changes of ``count`` images."""
    boxes = crop_boxes(count, config=config, rng=rng)
    return Crops(boxes, rng.random(count) < 0.5 if config.mirror else np.zeros(count, np.bool_))


def augment(pixels: NDArray[np.uint8], crops: Crops, *, size: int) -> Tensor:
    """Crop, resize and mirror. Shape: (B, S, S, 3), uint8 -> (B, 3, size, size), float32, 0 to 255."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(torch.get_default_device())
    images = images.permute(0, 3, 1, 2).float()
    if (crops.boxes == [0, 0, 1, 1]).all():
        sized = images if images.shape[2] == size else _resized(images, size)
    else:
        edges = np.rint(crops.boxes * pixels.shape[1]).astype(np.int64)
        sized = torch.cat(
            [
                _resized(image[None, :, top : top + max(h, 1), left : left + max(w, 1)], size)
                for image, (left, top, w, h) in zip(images, edges.tolist(), strict=True)
            ]
        )
    if crops.mirrored.any():
        flip = torch.from_numpy(crops.mirrored).to(sized.device)
        sized[flip] = sized[flip].flip(3)
    return sized


def _resized(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp_(0, 255)
