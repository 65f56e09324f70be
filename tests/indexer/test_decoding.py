"""Large builds decode JPEGs at reduced size, and an index keeps to the decoding that it began with."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index, compact_index, open_index, update_index
from llm2clip.indexer.lifecycle import sync
from llm2clip.indexer.storage.manifest import read_manifest, write_manifest

from ..encoders.test_reduced import photograph


class Eye(FakeEncoder):
    """Sees the pixels themselves."""

    def __init__(self) -> None:
        super().__init__(image_size=8, dim=192)

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1).astype(np.float32) + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    for number in range(20):
        (place / f"{number:02d}.jpg").write_bytes(photograph(400 + 20 * number, 300 + 15 * number))
    return place


def stored(index: Path, key: str) -> tuple[np.ndarray, tuple[int, int]]:
    with open_index(index) as opened:
        [row] = [row for rows in opened.items.each() for row in rows if row.key == key]
        return opened.vectors.take(np.array([row.id]))[0], (row.width, row.height)


def expected(image: Path, draft: bool) -> np.ndarray:
    encoder = Eye()
    return encoder.encode_prepared(encoder.prepare(image.read_bytes(), draft=draft).pixels[None])[0]


@pytest.mark.parametrize(("threshold", "margin"), [(20, 2), (21, 0)])
def test_build_index_decodes_large_corpora_at_reduced_size(folder, tmp_path, monkeypatch, threshold, margin):
    monkeypatch.setattr(sync, "DRAFT_FROM", threshold)
    build_index(folder, tmp_path / "i", encoder=Eye())
    assert read_manifest(tmp_path / "i").decoding == ({"margin": margin} if margin else None)
    vector, size = stored(tmp_path / "i", "05.jpg")
    np.testing.assert_array_equal(vector, expected(folder / "05.jpg", margin > 0).astype(np.float16))
    assert size == (500, 375)
    assert not np.array_equal(expected(folder / "05.jpg", False), expected(folder / "05.jpg", True))


@pytest.mark.parametrize("margin", [0, 1])
def test_update_index_keeps_the_decoding_of_an_earlier_release(folder, tmp_path, margin):
    """Which chose it by trial, and noted the result with ``cosine`` and ``probes``."""
    index = tmp_path / "i"
    build_index(folder, index, encoder=Eye())
    decoding = {"margin": margin, "cosine": 0.9995, "probes": 16}
    write_manifest(index, replace(read_manifest(index), decoding=decoding))
    for change in (lambda: None, lambda: compact_index(index)):
        change()
        (folder / "new.jpg").write_bytes(photograph(620, 404 + len(list(folder.iterdir()))))
        update_index(index, encoder=Eye())
        assert read_manifest(index).decoding == decoding
        vector, _ = stored(index, "new.jpg")
        np.testing.assert_array_equal(vector, expected(folder / "new.jpg", margin > 0).astype(np.float16))
