"""Raw files of cameras: a DNG written here, which LibRaw reads; the preview in it, orientation, damage."""

from __future__ import annotations

import struct
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import ImageError
from llm2clip.encoders.images.cost import is_cheap
from llm2clip.encoders.images.decode import decode_here, read_image

from .image_files import refused_of_flipped

pytest.importorskip("rawpy")
_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "I", 10: "i"}
_UNIT = [1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1]


def preview_of(orientation: int = 1) -> bytes:
    """A JPEG 320 wide and 240 high: red left, blue right."""
    image = Image.new("RGB", (320, 240), (255, 0, 0))
    image.paste((0, 0, 255), (160, 0, 320, 240))
    exif, buffer = Image.Exif(), BytesIO()
    if orientation != 1:
        exif[0x0112] = orientation
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def dng(preview: bytes | None, *, orientation: int = 1) -> bytes:
    """A DNG of 64 x 48 grey pixels behind a colour filter, with a preview of 320 x 240 pixels."""
    data = bytearray(b"II*\0\0\0\0\0")

    def put(content: bytes) -> int:
        data.extend(b"\0" * (len(data) % 2))
        data.extend(content)
        return len(data) - len(content)

    def directory(tags: dict[int, tuple[int, list[int] | bytes]]) -> int:
        entries = b""
        for tag, (kind, values) in sorted(tags.items()):
            text = isinstance(values, bytes)
            raw = values + b"\0" if text else struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
            count = len(raw) if text else len(values) // (2 if kind in (5, 10) else 1)
            place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", put(raw))
            entries += struct.pack("<HHI", tag, kind, count) + place
        return put(struct.pack("<H", len(tags)) + entries + bytes(4))

    pixels = np.full((48, 64), 1000, "<u2").tobytes()
    tags = {254: (4, [0]), 256: (4, [64]), 257: (4, [48]), 258: (3, [16]), 259: (3, [1]), 262: (3, [32803])}
    tags |= {271: (2, b"Maker"), 272: (2, b"Camera"), 273: (4, [put(pixels)]), 274: (3, [orientation])}
    tags |= {277: (3, [1]), 278: (4, [48]), 279: (4, [len(pixels)]), 33421: (3, [2, 2])}
    tags |= {33422: (1, [0, 1, 1, 2]), 50706: (1, [1, 4, 0, 0]), 50707: (1, [1, 1, 0, 0])}
    tags |= {50708: (2, b"Maker Camera"), 50721: (10, _UNIT), 50728: (5, [1] * 6), 50778: (3, [21])}
    if preview is not None:
        inner = {254: (4, [1]), 256: (4, [320]), 257: (4, [240]), 258: (3, [8, 8, 8]), 259: (3, [7])}
        inner |= {262: (3, [6]), 273: (4, [put(preview)]), 277: (3, [3]), 278: (4, [240])}
        tags[330] = (4, [directory(inner | {279: (4, [len(preview)])})])
    data[4:8] = struct.pack("<I", directory(tags))
    return bytes(data)


def test_decode_takes_the_preview_of_a_raw_file():
    content = dng(preview_of())
    assert not is_cheap(content), "it is decoded in a process that can be ended"
    found = decode_here(content)
    expected = np.asarray(Image.open(BytesIO(preview_of())))
    np.testing.assert_array_equal(np.asarray(found.image), expected)
    assert (found.width, found.height) == (64, 48), "those of the photograph"
    assert read_image(content).size == (320, 240)


@pytest.mark.parametrize("of_preview", [False, True])
def test_decode_turns_the_preview_upright(of_preview):
    """Turned by 90 degrees clockwise: red is above. The orientation of the preview, if it has one, counts alone."""
    found = decode_here(dng(preview_of(6 if of_preview else 1), orientation=6))
    assert (found.image.size, found.width, found.height) == ((240, 320), 48, 64)
    top, bottom = found.image.getpixel((120, 20)), found.image.getpixel((120, 300))
    assert top[0] > 200 > 60 > top[2]
    assert bottom[2] > 200 > 60 > bottom[0]


def test_decode_refuses_raw_files_without_a_preview_or_damaged():
    with pytest.raises(ImageError, match=r"^camera raw without a preview$"):
        decode_here(dng(None))
    content = dng(preview_of())
    place = content.index(b"\xff\xd8\xff")
    with pytest.raises(ImageError):
        decode_here(content[: place + 20] + bytes(len(content) - place - 20 - 800) + content[-800:])
    with pytest.raises(ImageError, match=r"^camera raw that LibRaw cannot read$"):
        decode_here(b"FUJIFILMCCD-RAW 0201" + bytes(100))
    assert refused_of_flipped(content, times=60) >= 0


def test_decode_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(
        ImageError, match=r"^camera raw: reading it needs pip install 'llm2clip-retrieval\[raw\]'$"
    ):
        decode_here(b"\0\0\0\x18ftypcrx " + bytes(100))


def test_decode_reads_an_ordinary_tiff_of_a_camera_as_such():
    """One with the maker and an image within it, which LibRaw does not know."""
    image, buffer, exif = Image.new("RGB", (20, 10), (0, 90, 0)), BytesIO(), Image.Exif()
    exif[0x010F], exif[0x014A] = "Maker", 8
    image.save(buffer, "TIFF", exif=exif)
    assert decode_here(buffer.getvalue()).image.getpixel((0, 0)) == (0, 90, 0)
