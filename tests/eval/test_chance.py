"""Random encoders are encoders of their family, the same every time, and know nothing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import load_encoder
from llm2clip.encoders.families import FAMILIES
from llm2clip.eval.chance import make_random, random_families


def test_every_family_of_two_towers_has_one():
    assert set(FAMILIES) <= set(random_families())


@pytest.mark.parametrize("family", random_families())
def test_it_loads_as_its_family_and_tells_things_apart(family, tmp_path):
    folder = make_random(family, tmp_path / "one")
    encoder = load_encoder(folder)
    assert encoder.info.family == ("llm2clip" if family == "nano" else family)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    images, texts = encoder.encode_images(pictures), encoder.encode_texts(["a red car", "猫", "two dogs"])
    for vectors in (images, texts):
        assert np.linalg.matrix_rank(vectors) == 3
    again = load_encoder(make_random(family, tmp_path / "two"))
    np.testing.assert_array_equal(again.encode_images(pictures), images)
    assert again.info.weights_sha256 == encoder.info.weights_sha256
    other = load_encoder(make_random(family, tmp_path / "three", seed=1))
    assert other.info.weights_sha256 != encoder.info.weights_sha256
    before = (folder / "model.safetensors").stat().st_mtime_ns
    make_random(family, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_shuffled_nano_is_not_nano(tmp_path):
    encoder = load_encoder(make_random("nano", tmp_path / "one"))
    nano = load_encoder("nano")
    assert encoder.info.name == "random-nano"
    assert encoder.info.parameters == nano.info.parameters
    assert encoder.info.weights_sha256 != nano.info.weights_sha256


def test_unknown_families_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no random encoder of family 'wukong', expected one of nano, clip"):
        make_random("wukong", tmp_path)
