"""From an image to a square: against arithmetic by hand, and against transformers' own image processor."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import ImageError, ModelError
from llm2clip.encoders.core.files import from_json
from llm2clip.encoders.images.preprocess import Crop, Order, Preprocess, Resample, ResizeMode

WHITE = [255, 255, 255]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def spec(mode: ResizeMode, size: int = 8) -> Preprocess:
    return Preprocess(size=size, mode=mode)


def test_pad_square_keeps_a_square_of_the_right_size():
    image = noise(8, 8)
    assert np.array_equal(spec(ResizeMode.PAD_SQUARE).resize(image), np.asarray(image))


def test_pad_square_centres_on_white():
    square = spec(ResizeMode.PAD_SQUARE).resize(Image.new("RGB", (80, 40), (10, 20, 30)))
    assert square.shape == (8, 8, 3)
    assert (square[2:6] == (10, 20, 30)).all()
    assert (np.delete(square, range(2, 6), axis=0) == 255).all()
    upright = spec(ResizeMode.PAD_SQUARE).resize(Image.new("RGB", (40, 80), (10, 20, 30)))
    assert np.array_equal(upright, square.transpose(1, 0, 2))


def test_pad_square_averages_when_shrinking():
    """A checkerboard of single pixels becomes grey: no filter that looks at single pixels would give that."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = Image.fromarray(np.stack([board] * 3, axis=2).astype(np.uint8))
    assert np.abs(spec(ResizeMode.PAD_SQUARE).resize(image).astype(int) - 127.5).max() < 2


@pytest.mark.parametrize("mode", ResizeMode)
@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (3, 5000), (5000, 3), (7, 8)])
def test_resize_gives_a_square_for_any_shape(mode: ResizeMode, size: tuple[int, int]):
    square = spec(mode).resize(Image.new("RGB", size, (1, 2, 3)))
    assert (square.shape, square.dtype) == ((8, 8, 3), np.uint8)
    assert square[3, 3].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("resample", "filter_"),
    [
        (Resample.BILINEAR, Image.Resampling.BILINEAR),
        (Resample.BICUBIC, Image.Resampling.BICUBIC),
        (Resample.LANCZOS, Image.Resampling.LANCZOS),
    ],
)
def test_resize_uses_the_given_filter(resample: Resample, filter_: Image.Resampling):
    image = noise(31, 17)
    ours = Preprocess(size=8, mode=ResizeMode.SQUASH, resample=resample).resize(image)
    assert np.array_equal(ours, np.asarray(image.resize((8, 8), filter_)))


@pytest.mark.parametrize(
    "size", [(56, 56), (57, 56), (64, 48), (48, 64), (100, 57), (57, 100), (300, 100), (21, 34), (224, 223)]
)
def test_shortest_crop_is_what_clip_does(size: tuple[int, int]):
    from transformers import CLIPImageProcessorPil

    image = noise(*size)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        do_rescale=False,
        do_normalize=False,
    )
    theirs = processor(images=image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    assert np.array_equal(spec(ResizeMode.SHORTEST_CROP, 56).resize(image), theirs)


@pytest.mark.parametrize("size", [(40, 1600), (1600, 40)])
def test_shortest_crop_of_a_long_strip_is_the_same_middle(size: tuple[int, int]):
    image = noise(*size)
    scale = 20 / 40
    width, height = int(size[0] * scale), int(size[1] * scale)
    left, top = (width - 20) // 2, (height - 20) // 2
    whole = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 20, top + 20))
    assert np.array_equal(spec(ResizeMode.SHORTEST_CROP, 20).resize(image), np.asarray(whole))


def test_shortest_crop_of_a_thin_strip_is_bounded():
    """One pixel wide and 60,000 high: resized before cropping it would be 224 x 13,440,000 pixels."""
    square = spec(ResizeMode.SHORTEST_CROP, 224).resize(Image.new("RGB", (1, 60_000), (9, 8, 7)))
    assert (square == (9, 8, 7)).all()


def test_prepare_reports_the_upright_size():
    image = Image.new("RGB", (30, 20))
    image.getexif()[0x0112] = 6
    prepared = spec(ResizeMode.PAD_SQUARE).prepare(image)
    assert (prepared.width, prepared.height, prepared.pixels.shape) == (20, 30, (8, 8, 3))


@pytest.mark.parametrize(
    ("preprocess", "identifier"),
    [
        (spec(ResizeMode.PAD_SQUARE, 64), "rgb-on-white/pad-square/bicubic-64/mean.5std.5"),
        (
            Preprocess(size=224, mode=ResizeMode.SHORTEST_CROP, mean=CLIP_MEAN, std=CLIP_STD),
            "rgb-on-white/shortest-crop/bicubic-224/"
            "mean.48145466,.4578275,.40821073std.26862954,.26130258,.27577711",
        ),
        (
            Preprocess(
                size=7, mode=ResizeMode.SQUASH, resample=Resample.LANCZOS, mean=(0, 0, 0), std=(1, 1, 1)
            ),
            "rgb-on-white/squash/lanczos-7/mean0std1",
        ),
        (
            Preprocess(size=7, mode=ResizeMode.SHORTEST_CROP, crop=Crop.HALF_EVEN),
            "rgb-on-white/shortest-crop-half-even/bicubic-7/mean.5std.5",
        ),
        (
            Preprocess(size=7, mode=ResizeMode.SQUASH, parity="upstream", order=Order.RESIZE_FIRST),
            "upstream-resize-first/squash/bicubic-7/mean.5std.5",
        ),
    ],
)
def test_identifier_of_known_settings(preprocess: Preprocess, identifier: str):
    assert preprocess.identifier == identifier


def test_identifier_tells_settings_apart():
    settings = [
        Preprocess(size=size, mode=mode, resample=resample, mean=mean, std=std)
        for size in (8, 9)
        for mode in ResizeMode
        for resample in Resample
        for mean in (CLIP_MEAN, (0.5, 0.5, 0.5), (0.5, 0.5, 0.500001))
        for std in (CLIP_STD, (0.5, 0.5, 0.5))
    ]
    assert len({one.identifier for one in settings}) == len(settings)


def test_identifier_leaves_out_what_changes_nothing():
    squash = spec(ResizeMode.SQUASH)
    for same in ({"crop": Crop.HALF_EVEN}, {"order": Order.RESIZE_FIRST}):
        assert replace(squash, **same).identifier == squash.identifier
    upstream = replace(squash, parity="upstream")
    assert replace(upstream, order=Order.RESIZE_FIRST).identifier != upstream.identifier != squash.identifier


@pytest.mark.parametrize(("width", "left"), [(9, 0), (10, 1), (11, 2), (12, 2), (13, 2), (14, 3), (15, 4)])
def test_shortest_crop_rounds_to_even_as_torchvision(width: int, left: int):
    image = noise(width, 8)
    cropped = Preprocess(size=8, mode=ResizeMode.SHORTEST_CROP, crop=Crop.HALF_EVEN).resize(image)
    assert np.array_equal(cropped, np.asarray(image)[:, left : left + 8])
    floor = Preprocess(size=8, mode=ResizeMode.SHORTEST_CROP).resize(image)
    start = (width - 8) // 2
    assert np.array_equal(floor, np.asarray(image)[:, start : start + 8])


def saved(image: Image.Image, format: str) -> bytes:
    stream = BytesIO()
    image.save(stream, format)
    return stream.getvalue()


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
)
def test_prepare_upstream_takes_every_mode(mode: str, order: Order):
    image = noise(20, 12).convert("L") if mode in ("I;16", "I", "F") else noise(20, 12)
    processor = Preprocess(size=8, mode=ResizeMode.SHORTEST_CROP, parity="upstream", order=order)
    made = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    prepared = processor.prepare(made)
    assert (prepared.pixels.shape, prepared.width, prepared.height) == ((8, 8, 3), 20, 12)


@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG"])
def test_prepare_upstream_refuses_bad_files(format: str):
    data = saved(noise(20, 12), format)
    processor = Preprocess(size=8, mode=ResizeMode.SHORTEST_CROP, parity="upstream")
    with Image.open(BytesIO(data)) as image:
        expected = replace(processor, parity="native").resize(image.convert("RGB"))
    assert np.array_equal(processor.prepare(data).pixels, expected)
    for spoilt, message in (
        (data[:-60], "truncated|damaged"),
        (b"GIF89a", "damaged"),
        (b"?", "not an image"),
    ):
        with pytest.raises(ImageError, match=message):
            processor.prepare(spoilt)
    with pytest.raises(ImageError, match="megapixels"):
        processor.prepare(data, max_pixels=239)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "preprocess: size must be at least 1, got 0"),
        ({"std": [0.5, 0.0, 0.5]}, r"preprocess: std must be positive, got \(0.5, 0.0, 0.5\)"),
        ({"mode": "stretch"}, "preprocess.mode: expected one of .*'pad-square'.*, got 'stretch'"),
        ({"parity": "both"}, r"preprocess.parity: expected one of .*, got 'both'"),
        ({"mode": "pad-square", "order": "resize-first"}, "resize-first goes with shortest-crop or squash"),
        ({"mean": [0.5, 0.5]}, "preprocess.mean: expected 3 values, got 2"),
        ({"sise": 3}, r"preprocess: unknown keys: \['sise'\]; did you mean 'size'\?"),
    ],
)
def test_preprocess_refuses_impossible_settings(change: dict[str, object], message: str):
    with pytest.raises(ModelError, match=message):
        from_json(Preprocess, {"size": 8, "mode": "squash", **change}, where="preprocess")
