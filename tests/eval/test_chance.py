"""Random encoders are encoders of their family, the same every time, and know nothing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import load_encoder
from llm2clip.encoders.baselines.hf_families import FAMILIES
from llm2clip.eval.nano_report.random_encoders import make_random, random_families


def test_every_family_of_two_towers_has_one():
    assert set(FAMILIES) <= set(random_families())


@pytest.mark.parametrize("family", random_families())
def test_it_loads_as_its_family_and_tells_things_apart(family, tmp_path):
    folder = make_random(family, tmp_path / "one")
    encoder = load_encoder(folder)
    assert encoder.info.family == ("llm2clip" if family == "nano" else family)
    assert encoder.info.parameters > 0
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    images, texts = encoder.encode_images(photos), encoder.encode_texts(["a red car", "猫", "two dogs"])
    for vectors in (images, texts):
        assert np.linalg.matrix_rank(vectors) == 3
    alike = encoder.encode_texts(["a red car on a road", "a red car in a wood"])
    assert np.abs(alike[0] - alike[1]).max() > 1e-4  # texts are read to their ends
    before = (folder / "random.json").stat().st_mtime_ns
    make_random(family, folder)
    assert (folder / "random.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("family", ["clip", "long-clip"])
def test_one_seed_is_one_encoder(family, tmp_path):
    one, same, other = (
        load_encoder(make_random(family, tmp_path / str(number), seed=seed))
        for number, seed in enumerate((0, 0, 1))
    )
    assert one.info.weights_sha256 == same.info.weights_sha256 != other.info.weights_sha256
    np.testing.assert_array_equal(one.encode_texts(["a cat"]), same.encode_texts(["a cat"]))


def test_shuffled_nano_is_not_nano(tmp_path):
    encoder = load_encoder(make_random("nano", tmp_path / "one"))
    nano = load_encoder("nano")
    assert encoder.info.name == "random-nano"
    assert encoder.info.parameters == nano.info.parameters
    assert encoder.info.weights_sha256 != nano.info.weights_sha256


def test_unknown_families_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"no random encoder of family 'wukong', expected one of nano, llm2clip, clip"
    ):
        make_random("wukong", tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no random encoder; name another folder"):
        make_random("clip", tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_what_was_begun_is_begun_again(tmp_path):
    folder = make_random("clip", tmp_path / "one")
    (folder / "random.json").write_text("null")
    (folder / "model.safetensors").write_bytes(b"cut")
    assert load_encoder(make_random("clip", folder)).info.dim == 48
