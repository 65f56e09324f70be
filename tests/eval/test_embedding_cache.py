"""Vectors are kept by content: nothing is encoded twice, nothing is lost, nothing is taken for something else."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder, TextTooLongWarning
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.runner import embedding_cache as embedding_cache
from llm2clip.eval.runner.embedding_cache import EmbeddingCache, encode_images, encode_texts


@dataclass(frozen=True)
class Kept:
    key: str
    content: bytes

    def read(self):
        return self.content


@pytest.fixture
def images(tars):
    return [Kept(f"{n}.png", tars.colour((n, 40, 200 - n))) for n in range(150)]


def make_cache(tmp_path, key="a"):
    return EmbeddingCache(tmp_path / "vectors", key=key, dim=16)


def test_encode_images_and_texts_give_the_encoders_vectors(tmp_path, images):
    encoder = FakeEncoder()
    expected = FakeEncoder().encode_images([one.content for one in images])
    told = []
    found = encode_images(encoder, images, cache=make_cache(tmp_path), progress=told.append)
    np.testing.assert_array_equal(found.vectors, expected)
    assert sum(told) == 150
    assert (found.spent.encoded, found.spent.remembered) == (150, 0)
    texts = [f"a red thing {n % 40}" for n in range(90)] + ["blue"]
    np.testing.assert_array_equal(
        encode_texts(encoder, texts, cache=make_cache(tmp_path)).vectors, FakeEncoder().encode_texts(texts)
    )


def test_embedding_cache_second_run_encodes_nothing(tmp_path, images):
    texts = ["red", "blue", "red", "a green one"]
    first = encode_images(FakeEncoder(), images, cache=make_cache(tmp_path))
    words = encode_texts(FakeEncoder(), texts, cache=make_cache(tmp_path))
    encoder = FakeEncoder()
    again = encode_images(encoder, images, cache=make_cache(tmp_path))
    words_again = encode_texts(encoder, texts, cache=make_cache(tmp_path))
    assert (encoder.prepared, encoder.image_batches, encoder.text_batches) == (0, [], [])
    np.testing.assert_array_equal(again.vectors, first.vectors)
    np.testing.assert_array_equal(words_again.vectors, words.vectors)
    assert (again.spent.encoded, again.spent.remembered) == (0, 150)
    assert words.spent.encoded == 3  # equal texts are read once
    assert again.digests == first.digests


def test_encode_texts_distinguishes_every_character(tmp_path):
    texts = ["Red", "red", "red ", "re\u0301d", "r\u00e9d"]
    found = encode_texts(FakeEncoder(), texts, cache=make_cache(tmp_path))
    assert (found.spent.encoded, len(set(found.digests))) == (5, 5)


def test_embedding_cache_ignores_names(tmp_path, images):
    encode_images(FakeEncoder(), images, cache=make_cache(tmp_path))
    encoder = FakeEncoder()
    renamed = [Kept(f"other/{n}", one.content) for n, one in enumerate(reversed(images))]
    found = encode_images(encoder, renamed, cache=make_cache(tmp_path))
    assert encoder.prepared == 0
    np.testing.assert_array_equal(
        found.vectors, FakeEncoder().encode_images([one.content for one in renamed])
    )
    # Another encoder, or another arithmetic, has a key of its own.
    encode_images(encoder, images[:3], cache=make_cache(tmp_path, "b"))
    assert encoder.prepared == 3


def test_embedding_cache_resumes_an_interrupted_run(tmp_path, images):
    encoder, done = FakeEncoder(), 0

    def stop(number):
        nonlocal done
        done += number
        if done == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_images(encoder, images, cache=make_cache(tmp_path), progress=stop)
    assert sum(encoder.image_batches) == 64
    after = FakeEncoder()
    found = encode_images(after, images, cache=make_cache(tmp_path))
    assert sum(after.image_batches) == 150 - 64
    np.testing.assert_array_equal(found.vectors, FakeEncoder().encode_images([one.content for one in images]))


@pytest.mark.parametrize("harm", ["cut", "bits", "rubbish"])
def test_embedding_cache_replaces_a_damaged_file(tmp_path, images, capsys, harm):
    encode_images(FakeEncoder(), images, cache=make_cache(tmp_path))
    [file] = (tmp_path / "vectors" / "a" / "images").glob("*.npz")
    content = bytearray(file.read_bytes())
    if harm == "bits":  # in the vectors; the digests stay readable
        content[-2000] ^= 0xFF
    file.write_bytes(content[:-900] if harm == "cut" else b"no archive" if harm == "rubbish" else content)
    encoder = FakeEncoder()
    found = encode_images(encoder, images, cache=make_cache(tmp_path))
    expected = FakeEncoder().encode_images([one.content for one in images])
    np.testing.assert_array_equal(found.vectors, expected)
    assert encoder.prepared == 150
    assert "is damaged" in capsys.readouterr().err
    assert encode_images(FakeEncoder(), images, cache=make_cache(tmp_path)).spent.encoded == 0


def test_encode_images_names_a_bad_image(tmp_path, images):
    bad = [*images[:2], Kept("x/broken.jpg", b"no image")]
    with pytest.raises(
        DatasetError, match=r"image x/broken.jpg: .*A number over fewer images is not comparable"
    ):
        encode_images(FakeEncoder(), bad, cache=make_cache(tmp_path))


def test_encode_images_skips_reading_known_digests(tmp_path, images):
    digests = {}
    kept = EmbeddingCache(tmp_path / "vectors", key="a", dim=16, digests=digests)
    encode_images(FakeEncoder(), images, cache=kept)
    assert len(digests) == 150
    unread = [Kept(one.key, one.content) for one in images]
    object.__setattr__(unread[0], "content", images[0].content)
    again = encode_images(FakeEncoder(), unread, cache=kept)
    assert again.spent.encoded == 0


def test_encode_texts_does_not_warn_of_truncation(tmp_path):
    encoder = FakeEncoder(max_text_tokens=3)
    found = encode_texts(encoder, ["a red and blue thing"], cache=make_cache(tmp_path))  # warnings are errors
    assert found.vectors.shape == (1, 16)
    with pytest.warns(TextTooLongWarning):
        encoder.encode_texts(["a red and blue thing"])


def test_embedding_cache_writes_as_it_goes(tmp_path, images, monkeypatch):
    monkeypatch.setattr(embedding_cache, "_WRITE_EVERY", 64)
    encode_images(FakeEncoder(), images, cache=make_cache(tmp_path))
    files = list((tmp_path / "vectors" / "a" / "images").iterdir())
    assert len(files) == 3
    assert all(file.suffix == ".npz" for file in files)


def test_encode_images_times_only_what_it_encodes(tmp_path, images, monkeypatch):
    encode_images(FakeEncoder(), images[:100], cache=make_cache(tmp_path))
    passed = []  # the clock: one second for each image that is done
    monkeypatch.setattr(embedding_cache, "time", SimpleNamespace(monotonic=lambda: float(len(passed))))
    found = encode_images(FakeEncoder(), images, cache=make_cache(tmp_path), progress=passed.append)
    assert (found.spent.encoded, found.spent.remembered) == (50, 100)
    assert found.spent.seconds == 51
