"""Images made by hand or with Pillow, and what reading them gives."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import ImageError
from llm2clip.encoders.images.decode import read_image

Image.init()
AVIF = pytest.param(
    "AVIF", marks=pytest.mark.skipif("AVIF" not in Image.SAVE, reason="Pillow was built without AVIF")
)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(source: object) -> np.ndarray:
    image = read_image(source)  # type: ignore[arg-type]
    assert image.mode == "RGB"
    return np.asarray(image)


def reason(data: bytes) -> str:
    """Why ``data`` is refused; empty if it is not. Anything but an ``ImageError`` fails the test."""
    try:
        read_image(data, max_pixels=1_000_000)
    except ImageError as error:
        return str(error)
    return ""


def refused_of_flipped(data: bytes, *, times: int) -> int:
    """How many of so many copies, each with up to three bytes changed, are refused; every reason is a few words."""
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(times):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] = int(random.integers(256))
        why = reason(bytes(damaged))
        assert len(why) < 60
        refused += bool(why)
    return refused


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand; ``rows`` are raw scan lines, each with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def corners(mode: str = "RGB") -> Image.Image:
    """3 wide, 2 high: red top left, green top right, blue bottom left, the rest white."""
    image = Image.new("RGB", (3, 2), WHITE)
    for place, colour in (((0, 0), RED), ((2, 0), GREEN), ((0, 1), BLUE)):
        image.putpixel(place, colour)
    return image.convert(mode)


CORNERS = np.array([[RED, WHITE, GREEN], [BLUE, WHITE, WHITE]], dtype=np.uint8)
