"""File types of images and videos; reads files, byte spans of limited size, and the metadata in an image file."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llm2clip.indexer.core.errors import CorpusError

MAX_IMAGE_BYTES = 256 * 2**20
"""Larger files are not read."""
_ALWAYS = frozenset(
    f".{kind}"
    for kind in [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "apng",
        "webp",
        "gif",
        "tif",
        "tiff",
        "bmp",
        "dib",
        "pgm",
        "ppm",
        "pbm",
        "pnm",
    ]
)
_WHERE_PILLOW_CAN = {"avif": frozenset([".avif"]), "jpg_2000": frozenset([".jp2", ".j2k"])}
HEIF = frozenset([".heic", ".heif", ".hif"])
_NEVER = frozenset([".jxl"])
_RAW = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mrw nef nrw orf pef raf rw2 sr2 srf srw x3f"
CAMERAS = frozenset(f".{kind}" for kind in _RAW.split())
"""Endings of raw files of cameras."""

_VIDEOS = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv webm wmv"
VIDEOS = frozenset(f".{kind}" for kind in _VIDEOS.split())
"""Endings of videos, lower case with their dot."""


_OTHERS = """
7z a aac aae ai apk arrow ass bak bin bz2 c cdr cfg class cls conf cpp crdownload css csv db dll dmg doc
docx dylib eps epub exe feather flac gz h h5 hdf5 htm html icns ico idx indd ini ipynb iso jar java js json
jsonl lnk lock log lrv lst m4a mat md mp3 msi ndjson npy npz o obj odp ods odt ogg onnx opus otf parquet
part pdf pickle pkl pl ply ppt pptx psd pt pth py pyc pyd rar raw rb rs rst rtf safetensors sh so sqlite srt
stl svg tar tex tfrecord tgz thm tmp toml torrent tsv ttf txt url vtt wav woff woff2 xcf xls xlsx xml xmp xz
yaml yml zip zst
"""
"""Endings of what is no image: such files are not opened."""
_OTHER_ENDINGS = frozenset(f".{kind}" for kind in _OTHERS.split())
START = 32
"""Bytes from the beginning of a file that tell whether it is an image."""
_PNM = re.compile(rb"P[1-6][ \t\r\n]+[#0-9]")
_JPEG2000 = (b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51")
_MARKS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_BRANDS = {"avif": ("avif", "avis"), "heic": ("heic", "heix", "hevc", "hevx", "mif1", "msf1", "heim", "heis")}


class RefusedError(CorpusError):
    """A file that is not read, whatever it holds: no regular file, too large, or outside of the corpus."""


@cache
def image_endings() -> frozenset[str]:
    """Endings of images that Pillow, its HEIF plugin and rawpy decode here, lower case with their dot."""
    from PIL import features

    more = (HEIF if find_spec("pillow_heif") else frozenset()) | (
        CAMERAS if find_spec("rawpy") else frozenset()
    )
    return _ALWAYS.union(more, *(kinds for name, kinds in _WHERE_PILLOW_CAN.items() if features.check(name)))


@cache
def other_image_endings() -> frozenset[str]:
    """Endings of images that cannot be decoded here: without their extras those of cameras and HEIF."""
    return _NEVER.union(HEIF, CAMERAS, *_WHERE_PILLOW_CAN.values()) - image_endings()


def ending(name: str) -> str:
    """The ending of a file name without folders, lower case with its dot; empty if it has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def may_be_image(name: str) -> bool:
    """Whether only its content tells if a file is an image: it has no ending, or one that says nothing.

    Such are ``.jpg_large``, ``.jpg?w=1024`` and the like.
    """
    kind = ending(name)
    known = kind in _OTHER_ENDINGS or kind in VIDEOS or kind in other_image_endings()
    return not known and kind not in image_endings()


def starts_like_image(start: bytes) -> bool:
    """Whether a file is an image that can be read, by its first bytes."""
    if start.startswith(_MARKS) or _PNM.match(start):
        return True
    if start.startswith(b"BM"):
        return start[6:10] == b"\0\0\0\0" and start[14:18] in (
            b"\x0c\0\0\0",
            b"\x28\0\0\0",
            b"\x6c\0\0\0",
            b"\x7c\0\0\0",
        )
    if start[4:8] == b"ftyp":
        brand = start[8:12].decode("latin-1")
        return any(brand in _BRANDS[kind] and f".{kind}" in image_endings() for kind in _BRANDS)
    if start.startswith(_JPEG2000):
        return ".jp2" in image_endings()
    return start[:4] == b"RIFF" and start[8:12] == b"WEBP"


def start_of(file: str | Path) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with open_regular(file) as stream:
            return stream.read(START)
    except (OSError, ValueError):
        return b""


def printable(name: str) -> str:
    """A file name as text that can be stored: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def content_hash(content: bytes) -> bytes:
    """BLAKE2b of the encoded image, 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def open_regular(file: str | Path) -> BinaryIO:
    """Open a regular file, without waiting for what is none.

    Raises:
        RefusedError: it is a pipe, a device or a folder.
    """
    descriptor = -1
    if stat.S_ISREG(os.stat(file).st_mode):  # opening a device may have effects
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    raise RefusedError("not a regular file")


def read_whole(file: Path) -> bytes:
    """The content of a file."""
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_IMAGE_BYTES:
            raise RefusedError(f"file of {size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}")
        return stream.read(size)


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


_MOST_PARTS = 8192
_MOST_METADATA = 2**18
"""Longer parts of metadata are not read."""
_PIXELS = frozenset([b"IDAT", b"fdAT", b"VP8 ", b"VP8L", b"ALPH", b"ANMF"])
_EXIF_SEGMENT = b"Exif\0\0"
_XMP_SEGMENT, _IPTC_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0", b"Photoshop 3.0\0"
_XMP_BEGIN, _XMP_END = b"<x:xmpmeta", b"</x:xmpmeta>"
_TIFFS = (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")


class EmbeddedParts(NamedTuple):
    """The parts of a file that hold metadata; empty where there are none."""

    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    created: bytes = b""
    """The text "Creation Time" of a PNG."""


def embedded_parts(content: bytes) -> EmbeddedParts:
    """The metadata of an image file as bytes. Nothing is decoded, and every length and count is bounded."""
    if content.startswith(b"\xff\xd8"):
        return _of_jpeg(content)
    if content.startswith(b"\x89PNG"):
        return _of_png(content)
    if content.startswith(b"RIFF"):
        found = dict(_chunks(content, start=12, order="<", extra=0))
        return EmbeddedParts(exif=found.get(b"EXIF", b""), xmp=found.get(b"XMP ", b""))
    if content[:4] in (b"II*\0", b"MM\0*"):
        return EmbeddedParts(exif=content)
    xmp = content.find(_XMP_BEGIN)
    packet = content[xmp : content.find(_XMP_END, xmp)] if xmp >= 0 else b""
    places = [content.find(mark) for mark in _TIFFS] if content[4:8] == b"ftyp" else []
    exif = min((place for place in places if place >= 0), default=len(content))
    return EmbeddedParts(exif=content[exif : exif + _MOST_METADATA], xmp=packet[:_MOST_METADATA])


def _of_jpeg(content: bytes) -> EmbeddedParts:
    """From the segments before the first scan."""
    exif = xmp = iptc = b""
    place = 2
    for _ in range(_MOST_PARTS):
        if place + 4 > len(content):
            break
        mark, kind, length = struct.unpack_from(">BBH", content, place)
        if mark != 0xFF or kind == 0xDA:
            break
        if kind == 0xFF:  # padding
            place += 1
            continue
        body = place + 4
        if kind == 0xE1 and not exif and content.startswith(_EXIF_SEGMENT, body):
            exif = content[body + len(_EXIF_SEGMENT) : place + 2 + length]
        elif kind == 0xE1 and not xmp and content.startswith(_XMP_SEGMENT, body):
            xmp = content[body + len(_XMP_SEGMENT) : place + 2 + length]
        elif kind == 0xED and not iptc and content.startswith(_IPTC_SEGMENT, body):
            iptc = _iptc_resource(content[body + len(_IPTC_SEGMENT) : place + 2 + length])
        place += 2 + length
    return EmbeddedParts(exif=exif, xmp=xmp, iptc=iptc)


def _iptc_resource(block: bytes) -> bytes:
    """The IPTC among the resources of Photoshop."""
    place = 0
    while place + 12 <= len(block) and block[place : place + 4] == b"8BIM":
        kind, name = struct.unpack_from(">HB", block, place + 4)
        place += 6 + (name + 2) // 2 * 2
        length = int.from_bytes(block[place : place + 4])
        if kind == 0x0404:
            return block[place + 4 : place + 4 + length]
        place += 4 + (length + 1) // 2 * 2
    return b""


def _of_png(content: bytes) -> EmbeddedParts:
    exif = xmp = created = b""
    for kind, body in _chunks(content, start=8, order=">", extra=4):
        if kind == b"eXIf":
            exif = body
        elif kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0\0"):
            xmp = body
        elif kind in (b"tEXt", b"iTXt") and body.startswith(b"Creation Time\0"):
            created = body.rpartition(b"\0")[2]
    return EmbeddedParts(exif=exif, xmp=xmp, created=created)


def _chunks(content: bytes, *, start: int, order: str, extra: int) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of the chunks of a PNG or WebP, of at most ``_MOST_METADATA``."""
    place = start
    for _ in range(_MOST_PARTS):
        if place + 8 > len(content):
            return
        length, kind = struct.unpack_from(order + "I4s", content, place)
        if order == "<":
            kind, length = struct.unpack_from("<4sI", content, place)
        if length <= _MOST_METADATA and kind not in _PIXELS:
            yield kind, content[place + 8 : place + 8 + length]
        place += 8 + length + extra + (length % 2 if order == "<" else 0)
