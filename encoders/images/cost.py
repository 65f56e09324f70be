"""Tells cheap images from others by their headers, without decoding anything."""

from __future__ import annotations

import struct

from llm2clip.encoders.core.errors import ImageError
from llm2clip.encoders.images.raw import STARTS

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_MOST_PIXELS = 12_000_000
_MOST_JPEG_PIXELS = 32_000_000
_MOST_PROGRESSIVE_PIXELS = 16_000_000  # all coefficients of a progressive JPEG are kept
_MOST_SCANNED = 256_000_000  # pixels times scans
_MOST_PARTS = 8192
_MOST_GIF_BYTES = 2**18  # Pillow's work grows with the square of a comment
_MOST_BYTES = 2**26
_PIXEL_CHUNKS = frozenset([b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"])
_SLOW = (b"II", b"MM", b"P", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", *STARTS)
"""TIFF, PPM, JPEG 2000 and raw files; what else is an image and not here begins with the size of a box ``ftyp``."""


def is_cheap(content: bytes) -> bool:
    """Whether time and memory to decode an image follow from its number of pixels, which is moderate.

    That holds for nearly all JPEG, PNG, WebP, GIF and BMP files; True too for what is no image.
    """
    if len(content) > _MOST_BYTES:
        return False
    try:
        if content.startswith(JPEG):
            return _cheap_jpeg(content)
        if content.startswith(PNG):
            return _cheap_png(content)
        if content.startswith(b"GIF8"):
            width, height = struct.unpack_from("<2H", content, 6)
            return bool(len(content) <= _MOST_GIF_BYTES and width * height <= _MOST_PIXELS)
        if content.startswith(b"RIFF"):
            return _webp_pixels(content) <= _MOST_PIXELS
        if content.startswith(b"BM"):
            width, height, _, _, compressed = struct.unpack_from("<2i2HI", content, 18)
            return bool(compressed == 0 and abs(width * height) <= _MOST_PIXELS)
    except (struct.error, IndexError):
        return len(content) < 2**16  # cut short
    return not (content.startswith(_SLOW) or content[4:8] == b"ftyp")


def _cheap_jpeg(content: bytes) -> bool:
    """Whether all segments up to the first scan are as usual, and the scans are few for so many pixels."""
    place, pixels, most = 2, 0, 0
    for _ in range(_MOST_PARTS):
        mark, kind, length = struct.unpack_from(">BBH", content, place)
        if mark != 0xFF or kind in (0x00, 0xFF):
            return False
        if kind == 0xDA:
            # In entropy-coded data 0xFF is followed by 0x00: this counts scans, and a few bytes of metadata at worst.
            return pixels <= most and pixels * content.count(b"\xff\xda", place) <= _MOST_SCANNED
        if kind in (0xC0, 0xC1, 0xC2):
            height, width = struct.unpack_from(">2H", content, place + 5)
            pixels, most = (
                width * height,
                _MOST_PROGRESSIVE_PIXELS if kind == 0xC2 else _MOST_JPEG_PIXELS,
            )
        place += 2 + length
    return False


def _cheap_png(content: bytes) -> bool:
    """Whether the chunks are not too many, nor the pixels."""
    width, height = struct.unpack_from(">2I", content, 16)
    if width * height > _MOST_PIXELS:
        return False
    place = len(PNG)
    for _ in range(_MOST_PARTS):
        if place + 8 > len(content):
            return True
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return False


def _webp_pixels(content: bytes) -> int:
    """Pixels of a WebP image or its canvas."""
    kind = content[12:16]
    if kind == b"VP8X":
        return (int.from_bytes(content[24:27], "little") + 1) * (int.from_bytes(content[27:30], "little") + 1)
    if kind == b"VP8L":
        bits: int = struct.unpack_from("<I", content, 21)[0]
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    width, height = struct.unpack_from("<2H", content, 26)
    return int(width & 0x3FFF) * int(height & 0x3FFF)


def pixels_only(content: bytes) -> bytes:
    """A PNG without the chunks that do not matter for its pixels, such as texts and colour profiles.

    Raises:
        ImageError: it has too many chunks.
    """
    place, kept = len(PNG), [PNG]
    for _ in range(2**20):
        length = int.from_bytes(content[place : place + 4], "big")
        chunk = content[place : place + 12 + length]
        if chunk[4:8] in _PIXEL_CHUNKS:
            kept.append(chunk)
        place += 12 + length
        if place >= len(content) or chunk[4:8] == b"IEND":
            return b"".join(kept)
    raise ImageError("more than a million PNG chunks")
