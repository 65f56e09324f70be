"""Images that decode and that the encoder refuses: they are listed, unless it refuses everything."""

from __future__ import annotations

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import BuildOptions, build_index, open_index

from .material import colour_of, encoded


class Refusing(FakeEncoder):
    """Gives no direction to images of some colours."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.refused = [colour_of(number) for number in numbers]

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        rows = super()._image_batch(pixels)
        for colour in self.refused:
            rows[(pixels[:, 4, 4] == colour).all(axis=1)] = 0
        return rows


@pytest.fixture
def numbered(tmp_path):
    """Ten images in order of their numbers."""
    folder = tmp_path / "numbered"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(encoded(colour_of(number)))
    return folder


def test_encode_batch_lists_a_refused_batch_once_others_were_encoded(numbered, tmp_path):
    options = BuildOptions(batch_size=2)
    for _ in range(2):  # the same again: what was refused is tried again, and refused again
        report = build_index(numbered, tmp_path / "i", encoder=Refusing(4, 5, 8, 9), options=options)
        assert (report.items, report.bad) == (6, 4)
        assert [bad.key for bad in report.bad_images] == ["4.png", "5.png", "8.png", "9.png"]
        assert {bad.reason for bad in report.bad_images} == {
            "encoder 'fake' gave an image vector without a direction (zero or not finite)"
        }
    report = build_index(numbered, tmp_path / "i", encoder=FakeEncoder(), options=options)
    assert (report.items, report.embedded, report.bad) == (10, 4, 0)


def test_encode_batch_lists_refused_images_of_an_update(numbered, tmp_path):
    build_index(numbered, tmp_path / "i", encoder=FakeEncoder())
    for number in (20, 21):
        (numbered / f"{number}.png").write_bytes(encoded(colour_of(number)))
    report = build_index(numbered, tmp_path / "i", encoder=Refusing(20, 21))
    assert (report.items, report.kept, [bad.key for bad in report.bad_images]) == (
        10,
        10,
        ["20.png", "21.png"],
    )
    with open_index(tmp_path / "i") as index:
        assert [(row.key, row.stage) for row in index.errors()] == [
            ("20.png", "encode"),
            ("21.png", "encode"),
        ]


def test_encode_batch_raises_if_the_first_batch_is_refused(numbered, tmp_path):
    with pytest.raises(ValueError, match="encoder 'fake' gave an image vector without a direction"):
        build_index(numbered, tmp_path / "i", encoder=Refusing(0, 1), options=BuildOptions(batch_size=2))
    assert not (tmp_path / "i").exists()
