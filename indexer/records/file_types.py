"""Which file names are taken for images and videos."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

_ALWAYS = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"])


_WHERE_PILLOW_CAN = {"avif": frozenset([".avif"]), "jpg_2000": frozenset([".jp2", ".j2k"])}


_HEIF = frozenset([".heic", ".heif", ".hif"])


_NEVER = frozenset([".jxl"])


_CAMERAS = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mrw nef nrw orf pef raf rw2 sr2 srf srw x3f"


VIDEOS = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".webm",
        ".wmv",
    ]
)
"""Endings of videos."""


@cache
def image_endings() -> frozenset[str]:
    """Endings of images that are read, lower case with their dot: those that this Pillow and its plugin decode."""
    from PIL import features

    more = _HEIF if find_spec("pillow_heif") else frozenset()
    return _ALWAYS.union(more, *(kinds for name, kinds in _WHERE_PILLOW_CAN.items() if features.check(name)))


@cache
def other_image_endings() -> frozenset[str]:
    """Endings of images that are not read: those of telephones and cameras that Pillow cannot decode."""
    cameras = (f".{kind}" for kind in _CAMERAS.split())
    return _NEVER.union(_HEIF, cameras, *_WHERE_PILLOW_CAN.values()) - image_endings()


def ending(name: str) -> str:
    """The ending of a file name without folders, lower case with its dot; empty if it has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def printable(name: str) -> str:
    """A file name as text that can be stored: bytes that are no UTF-8 are spelt out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
