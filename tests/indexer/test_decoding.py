"""JPEGs are decoded smaller only where the encoder gives nearly the same vectors, and indexes say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import BuildOptions, Record, build_index, open_index
from llm2clip.indexer.ingest import jpeg_draft as decoding
from llm2clip.indexer.ingest.jpeg_draft import PROBES, Decoding, choose_decoding

from ..encoders.test_reduced import photograph

SIDE = 32


class Eye(FakeEncoder):
    """Sees the pixels themselves, coarsely, and may be made to see the finest of them."""

    def __init__(self, *, sharp: float = 0.0) -> None:
        super().__init__(image_size=SIDE, dim=192)
        self.sharp = sharp

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        self.image_batches.append(len(pixels))
        grey = pixels.astype(np.float32) / 255
        coarse = grey.reshape(len(pixels), 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(len(pixels), -1)
        fine = (pixels % 2).astype(np.float32).reshape(len(pixels), 16, -1).mean(axis=2)
        rows = np.concatenate([coarse[:, :176], self.sharp * (fine - 0.5)], axis=1)
        return rows.astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty JPEGs of different sizes, a PNG, and what is no image."""
    place = tmp_path / "images"
    place.mkdir()
    for number in range(20):
        (place / f"{number:02d}.jpg").write_bytes(photograph(400 + 20 * number, 300 + 15 * number))
    (place / "z.png").write_bytes(photograph(300, 300, kind="PNG"))
    (place / "zz.jpg").write_bytes(b"no image")
    return place


def records(folder: Path) -> list[Record]:
    return [Record(key=file.name, uri=str(file), file=file) for file in sorted(folder.iterdir())]


def cosines(folder: Path, encoder: Eye, margin: int) -> np.ndarray:
    pairs = []
    for file in sorted(folder.glob("[0-9]*.jpg")):
        both = [encoder.prepare(file.read_bytes(), margin=each).pixels for each in (0, margin)]
        one, other = encoder.encode_prepared(np.stack(both))
        pairs.append(float(one.astype(np.float64) @ other))
    return np.array(pairs)


def test_images_are_decoded_smaller_where_the_encoder_cannot_tell(folder: Path):
    encoder = Eye()
    found = choose_decoding(records(folder), encoder=encoder)
    assert (found.margin, found.probes >= PROBES - 1) == (1, True)
    assert cosines(folder, encoder, 1).min() >= 0.999
    assert 0.999 <= found.cosine <= 1


def test_they_are_decoded_whole_where_it_can(folder: Path):
    encoder = Eye(sharp=10.0)
    assert cosines(folder, encoder, 1).min() < 0.999
    found = choose_decoding(records(folder), encoder=encoder)
    assert found.margin == 0
    assert found.cosine < 0.999
    assert choose_decoding(records(folder), encoder=encoder, parity=-1).margin == 1


def test_nothing_is_encoded_where_nothing_can_be_gained(tmp_path: Path):
    encoder = Eye()
    (tmp_path / "a.png").write_bytes(photograph(300, 200, kind="PNG"))
    (tmp_path / "b.jpg").write_bytes(photograph(60, 50))
    assert choose_decoding(records(tmp_path), encoder=encoder) == Decoding(probes=2)
    assert choose_decoding([], encoder=encoder) == Decoding()
    assert encoder.image_batches == []


def test_an_index_keeps_to_the_decoding_that_it_began_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decoding, "ENOUGH", 10)
    monkeypatch.setattr("llm2clip.indexer.ingest.sync_source.ENOUGH", 10)
    encoder, place = Eye(), tmp_path / "i"
    options = BuildOptions(batch_size=8)
    build_index(folder, place, encoder=encoder, options=options)
    with open_index(place) as index:
        chosen = index.manifest.decoding
        assert chosen is not None
        assert chosen["margin"] == 1
        keys = {
            hit.key: hit for hit in index.search(index.vectors.take(np.arange(1)).astype(np.float32), k=50)[0]
        }
    assert (keys["00.jpg"].width, keys["00.jpg"].height) == (400, 300)

    new = photograph(620, 404)
    (folder / "new.jpg").write_bytes(new)
    monkeypatch.setattr("llm2clip.indexer.ingest.sync_source.choose_decoding", None)  # is not asked again
    build_index(folder, place, encoder=encoder, options=options)
    with open_index(place) as index:
        assert index.manifest.decoding == chosen
        expected = encoder.encode_prepared(encoder.prepare(new, margin=1).pixels[None])
        (hit,) = (hit for hit in index.search(expected, k=50)[0] if hit.key == "new.jpg")
        np.testing.assert_allclose(
            index.vectors.take(np.array([hit.id]))[0], expected[0].astype(np.float16), atol=1e-6
        )
    assert json.loads((place / "manifest.json").read_text())["decoding"]["margin"] == 1


def test_a_few_images_are_decoded_whole_without_a_trial(folder: Path, tmp_path: Path):
    encoder = Eye()
    build_index(folder, tmp_path / "i", encoder=encoder)
    with open_index(tmp_path / "i") as index:
        assert index.manifest.decoding is None
    assert sum(encoder.image_batches) == 21
