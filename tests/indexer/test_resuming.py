"""Builds that were interrupted and go on, in this process."""

from __future__ import annotations

import os

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    BuildOptions,
    EncoderMismatchError,
    IndexConflictError,
    IndexNotFoundError,
    build_index,
    open_index,
)

from .material import content, encoded


class Stopping(FakeEncoder):
    """Stops after some batches, as Ctrl-C does."""

    def __init__(self, after: int, **options: object) -> None:
        super().__init__(**options)
        self.after = after

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        if len(self.image_batches) == self.after:
            raise KeyboardInterrupt
        return super()._image_batch(pixels)


def test_an_interrupted_build_goes_on(photos, tmp_path):
    options = BuildOptions(batch_size=4)
    embedded = 0
    for stop in (2, 1, 3):
        stopping = Stopping(stop)
        with pytest.raises(KeyboardInterrupt):
            build_index(photos, tmp_path / "i", encoder=stopping, options=options)
        embedded += sum(stopping.image_batches)
        with pytest.raises(
            IndexNotFoundError, match=r"is not finished: \d+ images so far. Go on with: llm2clip-index"
        ):
            open_index(tmp_path / "i")
    encoder = FakeEncoder()
    report = build_index(photos, tmp_path / "i", encoder=encoder, options=options)
    assert embedded == 24
    assert (report.embedded, report.kept, report.items) == (6, 24, 30)
    build_index(photos, tmp_path / "whole", encoder=FakeEncoder())
    with open_index(tmp_path / "i") as one, open_index(tmp_path / "whole") as other:
        assert content(one) == content(other)
        assert one.verify().ok
    assert sorted(os.listdir(tmp_path / "i")) == sorted(
        [*one.manifest.files, one.manifest.items_file, "manifest.json", "lock"]
    )


def test_what_changed_since_the_interruption_is_embedded_anew(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_index(photos, tmp_path / "i", encoder=Stopping(5), options=BuildOptions(batch_size=4))
    (photos / "003.png").write_bytes(encoded((9, 9, 9), size=(30, 30)))
    (photos / "006.png").unlink()
    report = build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    assert (report.items, report.kept, report.embedded) == (29, 18, 11)
    with open_index(tmp_path / "i") as index:
        [[hit]] = index.search(FakeEncoder().encode_images([encoded((9, 9, 9))]), k=1)
        assert (hit.key, hit.width) == ("003.png", 30)


def test_an_unfinished_build_of_something_else_is_refused(photos, shards, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_index(photos, tmp_path / "i", encoder=Stopping(1), options=BuildOptions(batch_size=4))
    with pytest.raises(IndexConflictError, match="holds an unfinished build of"):
        build_index(shards, tmp_path / "i", encoder=FakeEncoder())
    with pytest.raises(EncoderMismatchError, match=r"got 'fake' .dim 8."):
        build_index(photos, tmp_path / "i", encoder=FakeEncoder(dim=8))
    report = build_index(shards, tmp_path / "i", encoder=FakeEncoder(), options=BuildOptions(overwrite=True))
    assert report.items == 5


def test_an_interrupted_overwriting_goes_on_without_the_old_index(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    options = BuildOptions(batch_size=4, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        build_index(photos, tmp_path / "i", encoder=Stopping(2), options=options)
    with open_index(tmp_path / "i") as index:
        assert index.manifest.generation == 1
    report = build_index(photos, tmp_path / "i", encoder=encoder, options=options)
    assert (report.kept, report.embedded) == (8, 22)


def test_interrupted_before_anything_was_made_nothing_is_left(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_index(photos, tmp_path / "i", encoder=Stopping(0))
    assert not (tmp_path / "i").exists()
