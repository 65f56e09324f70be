"""Raw files of cameras (CR2, NEF, ARW, DNG and others): LibRaw finds the preview in them; nothing is developed."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from llm2clip.encoders.core.errors import ImageError

STARTS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
"""RAF, ORF, RW2, X3F, MRW; CR3 is a box ``ftyp`` of the brand ``crx ``."""
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}
_DNG, _CR2_AT = 0xC612, 8
_OF_CAMERAS = {0x010F, 0x014A}
"""Tags that the others, which are TIFF files, have and scanned pages do not: the maker, and images within the image."""
_MOST_TAGS = 1024
_TURNS = {3: 3, 5: 8, 6: 6}
"""How LibRaw says that an image is turned -> EXIF orientation."""


class Preview(NamedTuple):
    """The preview in a raw file."""

    image: bytes | Image.Image
    """Encoded, mostly as JPEG; or its pixels."""
    orientation: int
    """EXIF orientation that undoes how the camera was held, unless the preview has its own."""
    width: int
    """Of the photograph as it is stored, in pixels."""
    height: int
    """Of the photograph as it is stored, in pixels."""


def is_raw(content: bytes) -> bool:
    """Whether an encoded image is probably the raw file of a camera."""
    if _is_surely_raw(content):
        return True
    order = _TIFF.get(content[:4])
    if order is None:
        return False
    if content[_CR2_AT : _CR2_AT + 2] == b"CR":
        return True
    try:
        (place,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, place)
        entries = range(place + 2, place + 2 + 12 * min(count, _MOST_TAGS), 12)
        tags = {struct.unpack_from(f"{order}H", content, entry)[0] for entry in entries}
    except struct.error:
        return False
    return _DNG in tags or tags >= _OF_CAMERAS


def _is_surely_raw(content: bytes) -> bool:
    return content.startswith(STARTS) or content[4:12] == b"ftypcrx "


def read_preview(content: bytes) -> Preview | None:
    """The largest preview of a raw file; None if that cannot be read and the file may be an ordinary TIFF.

    Raises:
        ImageError: the file is damaged, has no preview, or needs rawpy, which is not installed.
    """
    try:
        import rawpy
    except ImportError as error:
        if _is_surely_raw(content):
            raise ImageError("camera raw: reading it needs pip install 'llm2clip-retrieval[raw]'") from error
        return None
    try:
        with rawpy.imread(BytesIO(content)) as raw:
            sizes, found = raw.sizes, raw.extract_thumb()
            orientation = _TURNS.get(sizes.flip, 1)
            image = found.data if isinstance(found.data, bytes) else Image.fromarray(found.data)
            return Preview(image, orientation, int(sizes.width), int(sizes.height))
    except rawpy.LibRawFileUnsupportedError as error:
        if _is_surely_raw(content):
            raise ImageError("camera raw that LibRaw cannot read") from error
        return None
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError) as error:
        raise ImageError("camera raw without a preview") from error
    except (rawpy.LibRawError, OSError, ValueError, TypeError) as error:
        raise ImageError("damaged camera raw") from error
