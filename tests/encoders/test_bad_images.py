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


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", AVIF, "PPM"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_read_image_refuses_truncated_files(format: str, part: float):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, format)
    with pytest.raises(
        ImageError, match=f"^(truncated file|damaged file|damaged or truncated {format} header)$"
    ):
        read_image(data[: int(len(data) * part)])


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_read_image_says_truncated_for_common_formats(format: str):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, format)
    with pytest.raises(ImageError, match=r"^truncated file$"):
        read_image(data[: len(data) // 2])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", AVIF, "JPEG2000"])
def test_read_image_raises_only_image_error_for_prefixes(format: str):
    data = saved(corners(), format)
    for length in range(len(data)):
        assert len(reason(data[:length])) < 60


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", AVIF, "JPEG2000"])
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
        (MemoryError(), "damaged file, or not enough memory"),
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
        b"x",
        b"P",
    ],
)
def test_read_image_refuses_other_files_with_an_image_suffix(content: bytes, tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"^not an image$"):
        read_image(tmp_path / "photo.jpg")


def test_read_image_never_runs_postscript(tmp_path: Path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match=r"^not an image$"):
        read_image(eps)


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


def test_read_image_refuses_a_bomb_by_its_header():
    # 10,000 x 10,000 pixels declared, and not a byte of them present: decoding would say "truncated".
    bomb = png(10_000, 10_000, depth=8, colour=2, rows=b"")
    with pytest.raises(ImageError, match=r"^100\.0 megapixels, limit 64$"):
        read_image(bomb)


@pytest.mark.parametrize("side", [10_000, 20_000, 60_000])
def test_read_image_of_any_size_raises_only_image_error(side: int):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="megapixels, limit 64"):
            read_image(png(side, side, depth=8, colour=2, rows=b""))


def test_read_image_takes_a_limit():
    data = saved(Image.new("RGB", (50, 40)), "PNG")
    assert read_image(data, max_pixels=2000).size == (50, 40)
    for source in (data, Image.new("RGB", (50, 40)), np.zeros((40, 50, 3), np.uint8)):
        with pytest.raises(ImageError, match=r"^0\.0 megapixels, limit 0\.001999$"):
            read_image(source, max_pixels=1999)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_read_image_refuses_other_arrays(array: np.ndarray):
    with pytest.raises(ImageError, match=r"expected an array of shape \(H, W, 3\), uint8, got "):
        read_image(array)


def test_read_image_refuses_no_pixels():
    with pytest.raises(ImageError, match=r"^no pixels: 3 x 0$"):
        read_image(np.zeros((0, 3, 3), np.uint8))


def test_read_image_refuses_other_sources():
    with pytest.raises(ImageError, match="expected a path, bytes, a PIL image or an array, got int"):
        read_image(5)  # type: ignore[arg-type]
