"""Images of every kind are read as they are seen; what is expected is worked out by hand."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import ImageError
from llm2clip.encoders.images.decode import read_image

from .image_files import AVIF, BLUE, CORNERS, GREEN, RED, WHITE, corners, pixels, png, saved


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG2000"])
def test_read_image_keeps_lossless_pixels(format: str):
    options = {"lossless": True} if format == "WEBP" else {}
    assert pixels(saved(corners(), format, **options)).tolist() == CORNERS.tolist()


@pytest.mark.parametrize("format", ["JPEG", AVIF])
def test_read_image_is_close_for_lossy_formats(format: str):
    image = Image.new("RGB", (32, 32), (200, 100, 50))
    assert np.abs(pixels(saved(image, format, quality=95)).astype(int) - (200, 100, 50)).max() <= 3


def test_read_image_takes_every_kind_of_source(tmp_path: Path):
    data = saved(corners(), "PNG")
    path = tmp_path / "näme with spaces.dat"
    path.write_bytes(data)
    for source in (
        path,
        str(path),
        data,
        Image.open(BytesIO(data)),
        corners(),
        CORNERS,
        CORNERS[:, ::-1][:, ::-1],
    ):
        assert pixels(source).tolist() == CORNERS.tolist()


def test_read_image_leaves_a_pil_image_unchanged():
    image = corners("RGBA")
    exif = image.getexif()
    exif[0x0112] = 6
    read_image(image)
    assert (image.mode, image.size, image.getexif()[0x0112]) == ("RGBA", (3, 2), 6)


TURNED = {
    1: [[RED, WHITE, GREEN], [BLUE, WHITE, WHITE]],
    2: [[GREEN, WHITE, RED], [WHITE, WHITE, BLUE]],
    3: [[WHITE, WHITE, BLUE], [GREEN, WHITE, RED]],
    4: [[BLUE, WHITE, WHITE], [RED, WHITE, GREEN]],
    5: [[RED, BLUE], [WHITE, WHITE], [GREEN, WHITE]],
    6: [[BLUE, RED], [WHITE, WHITE], [WHITE, GREEN]],
    7: [[WHITE, GREEN], [WHITE, WHITE], [BLUE, RED]],
    8: [[GREEN, WHITE], [WHITE, WHITE], [RED, BLUE]],
} | dict.fromkeys((0, 9, 77), CORNERS.tolist())
"""What is seen, by EXIF orientation. 6 says: turn clockwise by a quarter; unknown numbers say nothing."""


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_read_image_applies_exif_orientation(orientation: int, format: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(corners(), format, exif=exif, **options)
    assert pixels(data).tolist() == np.array(TURNED[orientation]).tolist()


def test_read_image_turns_a_jpeg_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (32, 0, 64, 32))
    upright = pixels(saved(image, "JPEG", exif=exif, quality=95))
    assert upright.shape == (64, 32, 3)
    assert np.abs(upright[8, 16].astype(int) - RED).max() < 5
    assert np.abs(upright[56, 16].astype(int) - BLUE).max() < 5


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_read_image_ignores_broken_exif():
    jpeg = saved(Image.new("RGB", (16, 16), (10, 200, 30)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.abs(pixels(jpeg)[8, 8].astype(int) - (10, 200, 30)).max() < 5


def image(mode: str, *pixels: object, palette: tuple[int, ...] = ()) -> Image.Image:
    made = Image.new(mode, (len(pixels), 1))
    if palette:
        made.putpalette(palette)
    made.putdata(pixels)
    return made


@pytest.mark.parametrize(
    ("source", "transparency", "expected"),
    [
        # 255 - 255 * a / 255 where the colour is 0.
        (
            image("RGBA", (255, 0, 0, 255), (255, 0, 0, 0), (255, 0, 0, 128), (0, 0, 0, 51)),
            None,
            [RED, WHITE, (255, 127, 127), (204, 204, 204)],
        ),
        # 100 * 0.2 + 255 * 0.8
        (image("LA", (0, 255), (0, 0), (100, 51)), None, [(0, 0, 0), WHITE, (224, 224, 224)]),
        (image("P", 0, 1, 2, palette=(*RED, *GREEN, *BLUE)), 1, [RED, WHITE, BLUE]),
        (image("P", 0, 1, 2, palette=(*RED, *GREEN, *BLUE)), bytes([255, 0, 255]), [RED, WHITE, BLUE]),
        (image("P", 0, palette=RED), bytes([51]), [(255, 204, 204)]),
        (image("RGB", GREEN, (0, 0, 0)), GREEN, [WHITE, (0, 0, 0)]),
        (image("L", 7, 0), 7, [WHITE, (0, 0, 0)]),
    ],
    ids=["RGBA", "LA", "palette colour", "palette table", "palette half", "RGB colour", "grey value"],
)
def test_read_image_blends_transparency_over_white(
    source: Image.Image, transparency: object, expected: list[tuple[int, int, int]]
):
    options = {} if transparency is None else {"transparency": transparency}
    assert pixels(saved(source, "PNG", **options)).tolist() == [[list(colour) for colour in expected]]


def test_read_image_converts_black_white_and_grey():
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert pixels(saved(bits, "PNG")).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert pixels(saved(Image.new("L", (1, 1), 77), "PNG")).tolist() == [[[77, 77, 77]]]


GREY16 = [0, 128, 129, 257, 1000, 32768, 40000, 65535]
GREY8 = [0, 0, 1, 1, 4, 128, 156, 255]
"""round(value / 257); clipping at 255 would make all but three of them white."""


def test_read_image_scales_16_bit_grey():
    by_hand = png(8, 1, depth=16, colour=0, rows=b"\0" + struct.pack(">8H", *GREY16))
    pgm = b"P5 8 1 65535\n" + struct.pack(">8H", *GREY16)
    array = np.array([GREY16], dtype=np.uint16)
    for source in (by_hand, pgm, saved(Image.fromarray(array), "TIFF"), Image.fromarray(array)):
        assert pixels(source)[0].tolist() == [[value] * 3 for value in GREY8]


def test_read_image_reads_16_bit_grey_of_either_byte_order():
    little = saved(Image.fromarray(np.array([GREY16], dtype="<u2")), "TIFF")
    big = Image.fromarray(np.array([GREY16], dtype=">u2"))
    assert little[:2] == b"II"
    assert pixels(little).tolist() == pixels(big).tolist()


def test_read_image_keeps_the_high_byte_of_16_bit_colour():
    rows = b"\0" + struct.pack(">6H", 65535, 0, 32768, 256, 40000, 65280)
    assert pixels(png(2, 1, depth=16, colour=2, rows=rows)).tolist() == [[[255, 0, 128], [1, 156, 255]]]


def test_read_image_blends_16_bit_colour_with_alpha():
    rows = b"\0" + struct.pack(">4H", 65535, 0, 0, 51 * 257)
    assert pixels(png(1, 1, depth=16, colour=6, rows=rows)).tolist() == [[[255, 204, 204]]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_read_image_stretches_values_without_a_range(dtype: type):
    values = np.array([[-10, 0, 10, 40]], dtype=dtype)
    data = saved(Image.fromarray(values), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == [0, 51, 102, 255]
    assert pixels(saved(Image.fromarray(np.full((1, 2), 7, dtype)), "TIFF")).tolist() == [[[0] * 3] * 2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_read_image_refuses_values_that_are_not_finite(value: float):
    data = saved(Image.fromarray(np.array([[0, value]], dtype=np.float32)), "TIFF")
    with pytest.raises(ImageError, match=r"^pixel values that are not finite$"):
        read_image(data)


def test_read_image_converts_cmyk():
    made = image("CMYK", (0, 255, 255, 0), (255, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0))
    assert pixels(saved(made, "TIFF")).tolist() == [[list(RED), list(GREEN), [0, 0, 0], list(WHITE)]]


def test_read_image_does_not_invert_adobe_cmyk():
    jpeg = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in jpeg
    assert np.abs(pixels(jpeg)[8, 8].astype(int) - RED).max() < 5


def test_read_image_converts_ycbcr():
    jpeg = saved(Image.new("YCbCr", (16, 16), (76, 85, 255)), "JPEG", quality=95)
    assert np.abs(pixels(jpeg)[8, 8].astype(int) - (254, 0, 0)).max() < 6


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_read_image_takes_the_first_frame(format: str):
    frames = [Image.new("RGB", (3, 2), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(BytesIO(data)), "n_frames", 1) == 3
    assert pixels(data).tolist() == [[list(RED)] * 3] * 2


def test_read_image_blends_a_transparent_first_frame():
    frame = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    frame.putpixel((1, 0), (0, 0, 0, 0))
    data = saved(frame, "GIF", save_all=True, append_images=[Image.new("RGBA", (2, 1), (0, 0, 255, 255))])
    assert pixels(data).tolist() == [[list(RED), list(WHITE)]]


def test_read_image_converts_lab():
    assert pixels(saved(Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF")).min() >= 254


def test_read_image_refuses_modes_without_conversion():
    with pytest.raises(ImageError, match=r"^cannot be converted to RGB from La$"):
        read_image(Image.new("La", (2, 2)))


def test_read_image_is_thread_safe():
    sources = [saved(Image.new("RGB", (40 + n, 30), (n, 2 * n, 3 * n)), "PNG") for n in range(40)]
    bomb = png(10_000, 10_000, depth=8, colour=2, rows=b"")
    wrong: list[int] = []

    def work(offset: int) -> None:
        for n in range(offset, len(sources), 4):
            image = read_image(sources[n])
            if image.getpixel((0, 0)) != (n, 2 * n, 3 * n) or image.width != 40 + n:
                wrong.append(n)
            try:
                read_image(bomb)
                wrong.append(-1)
            except ImageError:
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert wrong == []
