"""File types of images and videos; reads files and byte spans of limited size."""

from __future__ import annotations

import hashlib
import stat
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llm2clip.indexer.core.errors import CorpusError

MAX_IMAGE_BYTES = 256 * 2**20
"""Larger files are not read."""
_ALWAYS = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"])
_WHERE_PILLOW_CAN = {"avif": frozenset([".avif"]), "jpg_2000": frozenset([".jp2", ".j2k"])}
HEIF = frozenset([".heic", ".heif", ".hif"])
_NEVER = frozenset([".jxl"])
_CAMERAS = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mrw nef nrw orf pef raf rw2 sr2 srf srw x3f"


_VIDEOS = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv webm wmv"
VIDEOS = frozenset(f".{kind}" for kind in _VIDEOS.split())
"""Endings of videos, lower case with their dot."""


@cache
def image_endings() -> frozenset[str]:
    """Endings of images that this Pillow and its HEIF plugin decode, lower case with their dot."""
    from PIL import features

    more = HEIF if find_spec("pillow_heif") else frozenset()
    return _ALWAYS.union(more, *(kinds for name, kinds in _WHERE_PILLOW_CAN.items() if features.check(name)))


@cache
def other_image_endings() -> frozenset[str]:
    """Endings of images that Pillow cannot decode: raw formats of cameras, HEIF without its plugin."""
    cameras = (f".{kind}" for kind in _CAMERAS.split())
    return _NEVER.union(HEIF, cameras, *_WHERE_PILLOW_CAN.values()) - image_endings()


def ending(name: str) -> str:
    """The ending of a file name without folders, lower case with its dot; empty if it has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def printable(name: str) -> str:
    """A file name as text that can be stored: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def content_hash(content: bytes) -> bytes:
    """BLAKE2b of the encoded image, 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def read_whole(file: Path) -> bytes:
    """The content of a file."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CorpusError(f"{file} is not a regular file: expected an image")
    if found.st_size > MAX_IMAGE_BYTES:
        raise CorpusError(f"file of {found.st_size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}")
    return file.read_bytes()


def require_span(offset: int, size: int) -> None:
    """Refuse a byte span that no image can have: it may come from an untrusted index."""
    if offset < 0 or not 0 <= size <= MAX_IMAGE_BYTES:
        raise CorpusError(
            f"got a span of {size:,} bytes from byte {offset:,}, expected at most {MAX_IMAGE_BYTES:,} from 0 on: "
            "build the index again"
        )


def read_span(file: Path, *, offset: int, size: int) -> bytes:
    """``size`` bytes of a file from ``offset``."""
    require_span(offset, size)
    with open(file, "rb", buffering=0) as stream:
        stream.seek(offset)
        content = stream.read(size)
        while len(content) < size and (more := stream.read(size - len(content))):
            content += more
    if len(content) < size:
        raise OSError(f"{file} ends {size - len(content):,} bytes early")
    return content
