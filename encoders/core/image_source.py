"""Images as encoders take them, and as models read them."""

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
    """A decoded and preprocessed image."""

    pixels: NDArray[np.uint8]
    """Shape: (size, size, 3), uint8, RGB; of any size if ``EncoderInfo.image_size`` is 0."""
    width: int
    """Width of the original image as it is shown (after its EXIF rotation), in pixels."""
    height: int
    """Height of the original image as it is shown, in pixels."""
