"""Many whole numbers as a short text inside a JSON file."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(values: NDArray[Any]) -> str:
    """Whole numbers as text: int32, little-endian, zlib, base64. Infinite and larger ones become the largest."""
    limited = np.minimum(np.nan_to_num(values, posinf=math.inf), np.iinfo(np.int32).max)
    return base64.b64encode(zlib.compress(limited.astype("<i4").tobytes(), 9)).decode("ascii")


def unpack(text: str) -> NDArray[np.int32]:
    """What ``pack`` was given.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype="<i4").astype(
            np.int32
        )
    except (binascii.Error, zlib.error) as error:
        raise ValueError(
            f"packed numbers cannot be read ({error}): the result is damaged, measure again"
        ) from error
