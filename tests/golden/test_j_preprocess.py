"""Golden case j: images to pixels, as four original programs do it and as we do it by default."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from llm2clip.encoders.images.preprocess import Crop, Order, Preprocess, Resample, ResizeMode

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP = Preprocess(size=56, mode=ResizeMode.SHORTEST_CROP, mean=MEAN, std=STD, parity="upstream")
SQUARE = replace(CLIP, mode=ResizeMode.SQUASH)
SIGLIP = Preprocess(size=56, mode=ResizeMode.SQUASH, parity="upstream")
PROCESSORS = {
    "clip_image_processor": CLIP,
    "eva_preprocess_val": replace(CLIP, order=Order.RESIZE_FIRST, crop=Crop.HALF_EVEN),
    "siglip_image_processor": SIGLIP,
    "siglip_image_processor_rgb_first": SIGLIP,
    "chinese_clip_image_processor_square": SQUARE,
    "cnclip_original_square": replace(SQUARE, order=Order.RESIZE_FIRST),
}
UPRIGHT_RGB = ("RGB", "L")
"""Modes that no program has trouble with."""


@pytest.fixture
def case(golden):
    return golden.case("j_preprocess")


@pytest.fixture
def image(case, image_name):
    path = case.folder / image_name
    if not path.is_file():
        pytest.skip("no images in this folder")
    return path


@pytest.fixture
def facts(case, image):
    return case.json("info.json")["images"][image.name]


def sized(processor: Preprocess, case) -> Preprocess:
    return replace(processor, size=case.json("info.json")["target_size"])


def pixels(processor: Preprocess, image) -> torch.Tensor:
    square = processor.prepare(image).pixels
    scaled = (square.astype(np.float64) / 255 - processor.mean) / processor.std
    return torch.from_numpy(scaled.transpose(2, 0, 1))


def test_prepare_reference_equals_the_original_programs(case, image):
    expected = case.tensors("expected.safetensors")
    recorded = [key for key in expected if key.split("/")[0] == image.stem]
    assert {key.split("/")[1] for key in recorded} <= set(PROCESSORS)
    assert len(recorded) >= 5
    for key in recorded:
        case.check(key, pixels(sized(PROCESSORS[key.split("/")[1]], case), image), expected[key], atol=1e-5)


def test_prepare_crops_at_full_size_bit_for_bit(case):
    expected = case.tensors("expected_224_uint8.safetensors")
    for key, crop in expected.items():
        name, program = key.split("/")
        (path,) = case.folder.glob(f"images/{name}.*")
        processor = replace(PROCESSORS[program.removesuffix("_224")], size=224)
        case.exact(key, torch.from_numpy(processor.prepare(path).pixels.transpose(2, 0, 1).copy()), crop)


def test_prepare_native_equals_reference_on_plain_images(case, image, facts):
    if facts["mode"] not in UPRIGHT_RGB or facts["exif_orientation"] not in (None, 1):
        pytest.skip("no plain image")
    expected = case.tensors("expected.safetensors")
    for key in expected:
        if key.split("/")[0] == image.stem:
            native = replace(sized(PROCESSORS[key.split("/")[1]], case), parity="native")
            case.check(f"native {key}", pixels(native, image), expected[key], atol=1e-5)


def sensible(image: Image.Image) -> Image.Image:
    """What a person would have done first, written apart from the library."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(float) / 257).round().astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


@pytest.mark.parametrize("program", ["clip_image_processor", "eva_preprocess_val", "siglip_image_processor"])
def test_prepare_native_equals_reference_on_a_corrected_image(case, image, program):
    processor = sized(PROCESSORS[program], case)
    with Image.open(image) as opened:
        right = sensible(opened)
    native = pixels(replace(processor, parity="native"), image)
    case.check(f"put right: {image.stem}/{program}", native, pixels(processor, right), atol=1e-5)


def test_prepare_native_differs_where_the_originals_are_wrong(case, image):
    mistaken = ("exif_rotated", "gray16", "rgba")
    palette = image.stem == "palette"
    if image.stem not in mistaken and not palette:
        pytest.skip("the originals are right")
    program = "eva_preprocess_val" if palette else "clip_image_processor"
    processor = sized(PROCESSORS[program], case)
    wrong = case.tensors("expected.safetensors")[f"{image.stem}/{program}"]
    native = pixels(replace(processor, parity="native"), image)
    assert (native - wrong).abs().max() > 0.5
    assert (native - wrong).abs().mean() > 0.01


def test_preprocess_settings_are_those_of_the_case(case):
    recorded = case.json("info.json")["processors"]
    for name in ("clip_image_processor", "siglip_image_processor", "chinese_clip_image_processor_square"):
        settings, ours = recorded[name], PROCESSORS[name]
        assert (settings["resample"], ours.resample) == (3, Resample.BICUBIC)
        assert (tuple(settings["image_mean"]), tuple(settings["image_std"])) == (ours.mean, ours.std)
