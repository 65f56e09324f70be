"""JPEGs decoded smaller than they are, beside the whole way."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import FakeEncoder, ImageError
from llm2clip.encoders.images.decode import decode


def photograph(
    width: int, height: int, *, kind: str = "JPEG", orientation: int = 1, mode: str = "RGB"
) -> bytes:
    """An image with slopes and waves of many lengths, encoded."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = [127.5 + 127.5 * np.sin(40 * x * x + 9 * y), 255 * x, 255 * y * (1 - x)]
    image = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "shorter", "expected"),
    [
        ((800, 600), 300, (400, 300)),
        ((800, 600), 301, None),
        ((800, 600), 150, (200, 150)),
        ((801, 605), 75, (101, 76)),  # blocks at the edge count as whole ones
        ((3000, 600), 10, (375, 75)),
        ((8, 8), 1, (1, 1)),
        ((7, 7), 4, None),
    ],
)
def test_decode_drafts_as_far_as_the_shorter_side_allows(
    size: tuple[int, int], shorter: int, expected: tuple[int, int] | None
):
    image, width, height = decode(photograph(*size), draft=shorter)
    assert image.size == (expected or size)
    assert (width, height) == size


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_decode_drafts_jpegs_only(kind: str):
    assert decode(photograph(400, 300, kind=kind), draft=10)[0].size == (400, 300)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_prepare_with_draft_gives_nearly_the_pixels_of_the_whole_image(mode: str, orientation: int):
    content = photograph(640, 400, orientation=orientation, mode=mode)
    encoder = FakeEncoder(image_size=64)
    whole, reduced = encoder.prepare(content), encoder.prepare(content, draft=True)
    assert (reduced.width, reduced.height) == (whole.width, whole.height)
    assert (whole.width > whole.height) == (orientation < 5)
    difference = np.abs(whole.pixels.astype(int) - reduced.pixels.astype(int))
    assert not np.array_equal(whole.pixels, reduced.pixels)
    assert difference.mean() < 2
    assert np.percentile(difference, 99) < 10


def test_prepare_with_draft_keeps_twice_the_resolution():
    encoder = FakeEncoder(image_size=64)
    small = photograph(300, 255)
    np.testing.assert_array_equal(encoder.prepare(small, draft=True).pixels, encoder.prepare(small).pixels)


def test_prepare_with_draft_takes_files_and_leaves_pil_images_alone(tmp_path: Path):
    encoder = FakeEncoder(image_size=64)
    (tmp_path / "x.jpg").write_bytes(content := photograph(640, 400))
    drafted = encoder.prepare(content, draft=True).pixels
    np.testing.assert_array_equal(encoder.prepare(tmp_path / "x.jpg", draft=True).pixels, drafted)
    with Image.open(io.BytesIO(content)) as image:
        encoder.prepare(image, draft=True)
        assert image.size == (640, 400)


def test_prepare_with_draft_refuses_bad_jpegs_with_the_same_reasons():
    encoder = FakeEncoder(image_size=16)
    content = photograph(640, 400)
    for damaged in (content[:200], content[: len(content) // 2], b"\xff\xd8\xff" + b"x" * 100):
        reasons = set()
        for draft in (False, True):
            with pytest.raises(ImageError) as caught:
                encoder.prepare(damaged, draft=draft)
            reasons.add(str(caught.value))
        assert len(reasons) == 1
    with pytest.raises(ImageError, match=r"0\.3 megapixels, limit 0\.1"):
        decode(content, draft=16, max_pixels=100_000)
