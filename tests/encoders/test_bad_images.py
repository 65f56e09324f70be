"""Images that nobody vouches for: each is refused with a few words, and never with anything else."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import ImageError
from llm2clip.encoders.images.decode import read_image

from .image_files import AVIF, corners, png, reason, refused_of_flipped, saved

FORMATS = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", AVIF, "JPEG2000"]


@pytest.mark.parametrize("format", FORMATS)
def test_read_image_refuses_truncated_files(format: str):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, format)
    reasons = f"truncated file|damaged file|damaged or truncated {format} header"
    for length in (len(data) // 2, int(len(data) * 0.9)):
        why = "truncated file" if format in ("JPEG", "PNG") else reasons
        with pytest.raises(ImageError, match=f"^({why})$"):
            read_image(data[:length])


@pytest.mark.parametrize("format", FORMATS)
def test_read_image_raises_only_image_error_for_prefixes(format: str):
    data = saved(corners(), format)
    for length in range(len(data)):
        assert len(reason(data[:length])) < 60


@pytest.mark.parametrize("format", FORMATS)
def test_read_image_raises_only_image_error_for_flipped_bytes(format: str):
    data = saved(corners("P" if format == "GIF" else "RGB"), format)
    assert refused_of_flipped(data, times=150) > 0


@pytest.mark.skipif("AVIF" not in Image.SAVE, reason="Pillow was built without AVIF")
def test_read_image_refuses_damaged_avif():
    data = saved(Image.effect_noise((64, 64), 60).convert("RGB"), "AVIF")
    start = data.index(b"mdat") + 4
    assert reason(data[:start] + b"\xff" * (len(data) - start)) == "damaged file"
    assert reason(data.replace(b"pitm", b"free")) == "damaged or truncated AVIF header"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("anything"), "damaged file"),
        (ZeroDivisionError(), "damaged file"),
    ],
)
def test_read_image_gives_a_reason_for_every_decoder_error(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch
):
    def load(self: object) -> None:
        raise error

    data = saved(corners(), "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert reason(data) == why


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is no image\n" * 20,
        b"\0" * 1000,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b"x",
        b"P",
    ],
)
def test_read_image_refuses_other_files_with_an_image_suffix(content: bytes, tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"^not an image$"):
        read_image(tmp_path / "photo.jpg")


def test_read_image_refuses_an_empty_file(tmp_path: Path):
    (tmp_path / "photo.jpg").touch()
    for source in (tmp_path / "photo.jpg", b""):
        with pytest.raises(ImageError, match=r"^empty file$"):
            read_image(source)


def test_read_image_names_why_a_path_cannot_be_opened(tmp_path: Path):
    with pytest.raises(ImageError, match=r"^no such file or directory$"):
        read_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match=r"^a folder, not a file$"):
        read_image(tmp_path)


@pytest.mark.parametrize(("side", "megapixels"), [(10_000, "100.0"), (20_000, "400.0"), (60_000, "3600.0")])
def test_read_image_refuses_a_bomb_by_its_header(side: int, megapixels: str):
    # Not a byte of its pixels is present: decoding would say "truncated".
    bomb = png(side, side, depth=8, colour=2, rows=b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=rf"^{megapixels} megapixels, limit 64$"):
            read_image(bomb)


def test_read_image_takes_a_limit():
    data = saved(Image.new("RGB", (50, 40)), "PNG")
    assert read_image(data, max_pixels=2000).size == (50, 40)
    for source in (data, Image.new("RGB", (50, 40)), np.zeros((40, 50, 3), np.uint8)):
        with pytest.raises(ImageError, match=r"^0\.0 megapixels, limit 0\.001999$"):
            read_image(source, max_pixels=1999)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((4, 4), np.uint8), r"expected an array of shape \(H, W, 3\), uint8, got "),
        (np.zeros((4, 4, 4), np.uint8), r"expected an array of shape \(H, W, 3\), uint8, got "),
        (np.zeros((1, 4, 4, 3), np.uint8), r"expected an array of shape \(H, W, 3\), uint8, got "),
        (np.zeros((4, 4, 3), np.float32), r"expected an array of shape \(H, W, 3\), uint8, got "),
        (np.zeros((0, 3, 3), np.uint8), r"^no pixels: 3 x 0$"),
        (5, "expected a path, bytes, a PIL image or an array, got int"),
    ],
)
def test_read_image_refuses_other_sources(source: object, reason: str):
    with pytest.raises(ImageError, match=reason):
        read_image(source)  # type: ignore[arg-type]
