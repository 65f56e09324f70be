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


@pytest.fixture
def kept(tmp_path):
    """Encode images with the cache in this folder."""

    def encode(images, *, encoder=None, key="a", **options):
        cache = make_cache(tmp_path, key)
        return encode_images(encoder or FakeEncoder(), images, cache=cache, **options)

    return encode


def make_cache(tmp_path, key="a"):
    return EmbeddingCache(tmp_path / "vectors", key=key, dim=16)


def plain(images):
    return FakeEncoder().encode_images([one.content for one in images])


def test_encode_images_and_texts_give_the_encoders_vectors(tmp_path, images, kept):
    told = []
    found = kept(images, progress=told.append)
    np.testing.assert_array_equal(found.vectors, plain(images))
    assert sum(told) == 150
    assert (found.spent.encoded, found.spent.remembered) == (150, 0)
    texts = [f"a red thing {n % 40}" for n in range(90)] + ["blue"]
    vectors = encode_texts(FakeEncoder(), texts, cache=make_cache(tmp_path)).vectors
    np.testing.assert_array_equal(vectors, FakeEncoder().encode_texts(texts))


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


def test_embedding_cache_ignores_names(images, kept):
    kept(images)
    encoder = FakeEncoder()
    renamed = [Kept(f"other/{n}", one.content) for n, one in enumerate(reversed(images))]
    np.testing.assert_array_equal(kept(renamed, encoder=encoder).vectors, plain(renamed))
    assert encoder.prepared == 0
    # Another encoder, or another precision, has a key of its own.
    kept(images[:3], encoder=encoder, key="b")
    assert encoder.prepared == 3


def test_embedding_cache_resumes_an_interrupted_run(images, kept):
    encoder, done = FakeEncoder(), 0

    def stop(number):
        nonlocal done
        done += number
        if done == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(images, encoder=encoder, progress=stop)
    assert sum(encoder.image_batches) == 64
    after = FakeEncoder()
    np.testing.assert_array_equal(kept(images, encoder=after).vectors, plain(images))
    assert sum(after.image_batches) == 150 - 64


@pytest.mark.parametrize("harm", ["cut", "bits", "rubbish"])
def test_embedding_cache_replaces_a_damaged_file(tmp_path, images, kept, capsys, harm):
    kept(images)
    [file] = (tmp_path / "vectors" / "a" / "images").glob("*.npz")
    content = bytearray(file.read_bytes())
    if harm == "bits":  # in the vectors; the digests stay readable
        content[-2000] ^= 0xFF
    file.write_bytes(content[:-900] if harm == "cut" else b"no archive" if harm == "rubbish" else content)
    encoder = FakeEncoder()
    np.testing.assert_array_equal(kept(images, encoder=encoder).vectors, plain(images))
    assert encoder.prepared == 150
    assert "is damaged" in capsys.readouterr().err
    assert kept(images).spent.encoded == 0


def test_encode_images_names_a_bad_image(images, kept):
    bad = [*images[:2], Kept("x/broken.jpg", b"no image")]
    message = r"image x/broken.jpg: .*A number over fewer images is not comparable"
    with pytest.raises(DatasetError, match=message):
        kept(bad)


def test_encode_images_skips_reading_known_digests(tmp_path, images):
    digests = {}
    cache = EmbeddingCache(tmp_path / "vectors", key="a", dim=16, digests=digests)
    encode_images(FakeEncoder(), images, cache=cache)
    assert len(digests) == 150
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(Kept, "read")
        assert encode_images(FakeEncoder(), images, cache=cache).spent.encoded == 0


def test_encode_texts_does_not_warn_of_truncation(tmp_path):
    encoder = FakeEncoder(max_text_tokens=3)
    found = encode_texts(encoder, ["a red and blue thing"], cache=make_cache(tmp_path))  # warnings are errors
    assert found.vectors.shape == (1, 16)
    with pytest.warns(TextTooLongWarning):
        encoder.encode_texts(["a red and blue thing"])


def test_embedding_cache_writes_as_it_goes(tmp_path, images, kept, monkeypatch):
    monkeypatch.setattr(embedding_cache, "_WRITE_EVERY", 64)
    kept(images)
    files = list((tmp_path / "vectors" / "a" / "images").iterdir())
    assert len(files) == 3
    assert all(file.suffix == ".npz" for file in files)


def test_encode_images_times_only_what_it_encodes(images, kept, monkeypatch):
    kept(images[:100])
    passed = []  # the clock: one second for each image that is done
    monkeypatch.setattr(embedding_cache, "time", SimpleNamespace(monotonic=lambda: float(len(passed))))
    found = kept(images, progress=passed.append)
    assert (found.spent.encoded, found.spent.remembered) == (50, 100)
    assert found.spent.seconds == 51
