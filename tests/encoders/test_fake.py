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
def test_colour_words_find_images_of_that_colour(pattern: str):
    encoder = FakeEncoder(image_size=4)
    # Images that fill their square: padding is white.
    images = encoder.encode_images([image.resize((6, 6)) for image in sample_images()])
    scores = encoder.encode_texts([pattern.format(name) for name in COLOURS]) @ images.T
    assert scores.argmax(axis=1).tolist() == list(range(len(COLOURS)))


def test_hexadecimal_colours_are_read():
    encoder = FakeEncoder()
    assert np.array_equal(encoder.encode_texts(["#ff0000"]), encoder.encode_texts(["red"]))


def test_vectors_depend_on_content_seed_and_nothing_else():
    images = sample_images()
    first, second = FakeEncoder().encode_images(images), FakeEncoder().encode_images(images)
    assert np.array_equal(first, second)
    assert not np.allclose(first, FakeEncoder(seed=1).encode_images(images))
    assert FakeEncoder().info.identity() == FakeEncoder().info.identity()
    assert FakeEncoder().info.identity() != FakeEncoder(seed=1).info.identity()


def test_counters_count_batches():
    encoder = FakeEncoder()
    encoder.encode_images(sample_images(), batch_size=2)
    encoder.encode_texts(["a", "b c", "d"], batch_size=2)
    assert (encoder.prepared, encoder.image_batches, encoder.text_batches) == (5, [2, 2, 1], [2, 1])


def test_dim_must_hold_a_colour():
    with pytest.raises(ValueError, match="dim must be at least 4, got 3"):
        FakeEncoder(dim=3)
