"""What an encoder takes as an image, and what it makes of it before the model sees it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import PIL.Image
    from numpy.typing import NDArray

    ImageSource = str | os.PathLike[str] | bytes | PIL.Image.Image | NDArray[np.uint8]
    """A file, its bytes, a PIL image, or an array of shape (H, W, 3), uint8, RGB."""
else:
    ImageSource = object


@dataclass(frozen=True)
class PreparedImage:
    """A decoded image, ready for the model."""

    pixels: NDArray[np.uint8]
    """Shape: (size, size, 3), uint8, RGB."""
    width: int
    """Width of the original image as it is shown (after its EXIF rotation), in pixels."""
    height: int
    """Height of the original image as it is shown, in pixels."""
