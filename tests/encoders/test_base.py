"""What the base class does for every encoder: batching, order, checks, unit rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm2clip.encoders import (
    Encoder,
    EncoderInfo,
    EncodingError,
    FakeEncoder,
    ImageError,
    ImageSource,
    PreparedImage,
    TextTooLongWarning,
)


class Plain(Encoder):
    """Length of a text and mean of an image as vectors, far from unit length; remembers its texts."""

    def __init__(self, *, fill: float | None = None) -> None:
        self.fill = fill
        self.seen: list[list[str]] = []
        self._info = FakeEncoder(dim=4, image_size=2, max_text_tokens=5).info

    @property
    def info(self) -> EncoderInfo:
        return self._info

    def _prepare(self, image: ImageSource, *, draft: bool) -> PreparedImage:
        if not isinstance(image, np.ndarray):
            raise ImageError("truncated file")
        return PreparedImage(pixels=image, width=2, height=2)

    def _image_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._vectors([float(image.mean()) for image in pixels])

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.seen.append(list(texts))
        return self._vectors([len(text) for text in texts])

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def _vectors(self, values: Sequence[float]) -> NDArray[np.float32]:
        rows = [[3 * value, 4, 5, 6] if self.fill is None else [self.fill] * 4 for value in values]
        return np.array(rows, dtype=np.float32)


def unit(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    vectors = np.array(rows, dtype=np.float64)
    return vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True))


def image(value: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), value, dtype=np.uint8)


@given(st.lists(st.integers(0, 255), max_size=12), st.integers(1, 5))
def test_encode_images_keeps_order_in_any_batches(values: list[int], batch_size: int):
    vectors = Plain().encode_images([image(value) for value in values], batch_size=batch_size)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(values), 4)
    if values:
        assert np.allclose(vectors, unit([[3 * value, 4, 5, 6] for value in values]), atol=1e-6)


@given(
    st.lists(st.text("ab ", min_size=1, max_size=9).map(lambda text: text + "c"), max_size=12),
    st.integers(1, 5),
)
def test_encode_texts_keeps_order_in_any_batches(texts: list[str], batch_size: int):
    encoder = Plain()
    vectors = encoder.encode_texts(texts, batch_size=batch_size)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 4)
    if texts:
        assert np.allclose(vectors, unit([[3 * len(text), 4, 5, 6] for text in texts]), atol=1e-6)
    assert all(len(batch) <= batch_size for batch in encoder.seen)
    assert sorted(text for batch in encoder.seen for text in batch) == sorted(texts)


def test_encode_texts_batches_texts_of_like_length():
    encoder = Plain()
    encoder.encode_texts(["a b c", "a", "a b", "x"], batch_size=2)
    assert encoder.seen == [["a", "x"], ["a b", "a b c"]]


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf, -np.inf])
def test_encoder_refuses_vectors_without_direction(fill: float):
    encoder = Plain(fill=fill)
    message = r"encoder 'fake' gave {} vector without a direction \(zero or not finite\)"
    with pytest.raises(EncodingError, match=message.format("a text")):
        encoder.encode_texts(["a"])
    with pytest.raises(EncodingError, match=message.format("an image")):
        encoder.encode_prepared(image(0)[None])


@pytest.mark.parametrize("fill", [1e-18, 1e-25, 1e18, 1e25])
def test_encoder_normalises_vectors_of_any_length(fill: float):
    """Squares of these lie outside float32, or near its end."""
    assert np.allclose(Plain(fill=fill).encode_texts(["a"]), [[0.5] * 4], atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], r"^the text is empty; give at least one word$"),
        (["  \n\t "], r"^the text is empty; give at least one word$"),
        (["a", "\u3000"], r"^text 2 of 2 is empty; give at least one word$"),
        (["a", 5], r"^text 2 of 2 is int, expected str$"),
        (["ab\ud800c"], r"^the text is not valid Unicode: lone surrogate at position 2$"),
    ],
)
def test_encode_texts_refuses_unreadable_texts(texts: list[str], message: str):
    encoder = Plain()
    with pytest.raises(ValueError, match=message):
        encoder.encode_texts(texts)
    assert encoder.seen == []


def test_encoder_refuses_a_string_for_a_list():
    with pytest.raises(ValueError, match="texts must be a list, got one str; put it in a list"):
        Plain().encode_texts("a cat")
    with pytest.raises(ValueError, match="texts must be a list, got one str"):
        Plain().count_tokens("a cat")
    for one in ("cat.jpg", b"\xff\xd8", Path("cat.jpg")):
        with pytest.raises(ValueError, match=r"images must be a list, got one .*; put it in a list"):
            Plain().encode_images(one)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_encoder_refuses_batch_sizes_below_one(batch_size: int):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        Plain().encode_texts(["a"], batch_size=batch_size)
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        Plain().encode_images([image(1)], batch_size=batch_size)


def test_encode_texts_warns_of_a_cut_text():
    with pytest.warns(TextTooLongWarning) as caught:
        Plain().encode_texts(["a b c d e f g"])
    (warning,) = caught
    assert str(warning.message) == "the text is too long for 'fake': only the first 5 of 7 tokens were read"
    assert warning.filename == __file__


def test_encode_texts_warns_once_of_several_cut_texts():
    with pytest.warns(TextTooLongWarning) as caught:
        Plain().encode_texts(["a b c d e f", "a b c d e", "x b c d e f g h"])
    (warning,) = caught
    assert "2 of 3 texts are too long for 'fake'" in str(warning.message)
    assert "number 3, 'x b c d e f g h'" in str(warning.message)
    assert str(warning.message).endswith("only the first 5 of 8 tokens were read")


def test_encode_texts_does_not_warn_of_a_text_that_fits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Plain().encode_texts(["a b c d e"])
    assert Plain().count_tokens(["a", "a b c d e f g"]) == [1, 7]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((1, 3, 2, 3), np.uint8),
        np.zeros((1, 3, 2, 2), np.uint8),
        np.zeros((1, 2, 2, 3), np.float32),
    ],
)
def test_encode_prepared_refuses_other_shapes_and_types(pixels: np.ndarray):
    with pytest.raises(ValueError, match=r"pixels must be uint8 of shape \(n, 2, 2, 3\), got "):
        Plain().encode_prepared(pixels)


def test_encode_images_names_the_unreadable_image():
    with pytest.raises(ImageError, match=r"^image 2 of 3: truncated file$"):
        Plain().encode_images([image(0), b"x", image(1)])
    with pytest.raises(ImageError, match=r"^truncated file$"):
        Plain().encode_images([b"x"])
    with pytest.raises(ImageError, match=r"^image 1 of 2, there\.jpg: "):
        Plain().encode_images(["there.jpg", image(0)])
    with pytest.raises(ImageError, match=r"^there\.jpg: "):
        Plain().encode_images([Path("there.jpg")])
    with pytest.raises(ImageError, match=r"^truncated file$"):
        Plain().prepare(b"x")


def test_identity_holds_what_makes_vectors_comparable():
    info = FakeEncoder(name="a", dim=5).info
    assert info.identity() == {
        "name": "a",
        "family": "fake",
        "dim": 5,
        "weights_sha256": info.weights_sha256,
        "settings_sha256": info.settings_sha256,
        "preprocessing": info.preprocessing,
    }
