"""The fake encoder: other tests rely on what it says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import FakeEncoder

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "white": (255,) * 3,
}


def sample_images() -> list[Image.Image]:
    return [Image.new("RGB", (20, 10 + n), colour) for n, colour in enumerate(COLOURS.values())]


@pytest.mark.parametrize("pattern", ["color:{}", "a {} car", "{}", "Draw it {}!"])
def test_fake_encoder_finds_images_by_colour_words(pattern: str):
    encoder = FakeEncoder(image_size=4)
    # Images that fill their square: padding is white.
    images = encoder.encode_images([image.resize((6, 6)) for image in sample_images()])
    scores = encoder.encode_texts([pattern.format(name) for name in COLOURS]) @ images.T
    assert scores.argmax(axis=1).tolist() == list(range(len(COLOURS)))


def test_fake_encoder_reads_hexadecimal_colours():
    encoder = FakeEncoder()
    assert np.array_equal(encoder.encode_texts(["#ff0000"]), encoder.encode_texts(["red"]))


def test_fake_encoder_depends_on_content_and_seed_only():
    images = sample_images()
    first, second = FakeEncoder().encode_images(images), FakeEncoder().encode_images(images)
    assert np.array_equal(first, second)
    assert not np.allclose(first, FakeEncoder(seed=1).encode_images(images))
    assert FakeEncoder().info.identity() == FakeEncoder().info.identity()
    assert FakeEncoder().info.identity() != FakeEncoder(seed=1).info.identity()


def test_fake_encoder_counts_batches():
    encoder = FakeEncoder()
    encoder.encode_images(sample_images(), batch_size=2)
    encoder.encode_texts(["a", "b c", "d"], batch_size=2)
    assert (encoder.prepared, encoder.image_batches, encoder.text_batches) == (5, [2, 2, 1], [2, 1])


def test_fake_encoder_refuses_small_dims():
    with pytest.raises(ValueError, match="dim must be at least 4, got 3"):
        FakeEncoder(dim=3)
