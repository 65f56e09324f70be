"""HEIC, where the extra is installed: pixels, orientation, damage; and what is said where it is not."""

from __future__ import annotations

import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import ImageError
from llm2clip.encoders.images.decode import decode_here, read_image

from .image_files import refused_of_flipped

heif = pytest.importorskip("pillow_heif")


def quarters():
    """64 wide, 32 high: red left, blue right."""
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 32))
    return image


def heic(image, **options):
    stream = BytesIO()
    heif.from_pillow(image).save(stream, quality=95, **options)
    return stream.getvalue()


def test_read_image_decodes_heic():
    found = np.asarray(read_image(heic(quarters()))).astype(int)
    expected = np.asarray(quarters()).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected)[:, [*range(28), *range(36, 64)]].max() < 16


def test_read_image_turns_heic_upright():
    image = quarters()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = read_image(heic(image, exif=exif.tobytes()))
    assert found.size == (32, 64)
    top, bottom = found.getpixel((16, 5)), found.getpixel((16, 58))
    assert top[0] > 200 > 60 > top[2]
    assert bottom[2] > 200 > 60 > bottom[0]


def test_read_image_refuses_damaged_heic():
    data = heic(Image.effect_noise((64, 64), 60).convert("RGB"))
    with pytest.raises(ImageError, match=r"^(truncated file|damaged file|damaged or truncated HEIF header)$"):
        read_image(data[: len(data) // 2])
    assert refused_of_flipped(data, times=60) > 0


@pytest.mark.parametrize("brand", [b"mif1", b"heix"])
def test_read_image_reads_heic_with_signatures_of_avif(brand):
    data = heic(quarters())
    assert data[8:12] == b"heic"
    assert read_image(data[:8] + brand + data[12:]).size == (64, 32)


def test_read_image_refuses_large_heic_by_its_header():
    data = heic(quarters())
    with pytest.raises(ImageError, match=r"megapixels, limit 0\.001$"):
        read_image(data, max_pixels=1000)


def test_read_image_names_the_missing_extra(monkeypatch):
    data = heic(quarters())
    Image.init()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(
        ImageError, match=r"^HEIC: reading it needs pip install 'llm2clip-retrieval\[heic\]'$"
    ):
        decode_here(data)
