"""What every encoder promises, whatever computes its vectors. Values are held to references in the other files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import (
    DualEncoder,
    Encoder,
    FakeEncoder,
    ImageError,
    ModelError,
    Runtime,
    TextTooLongWarning,
    load_encoder,
    save_encoder,
)
from llm2clip.encoders.baselines.hf_families import FAMILIES

from .published_files import ROWS
from .test_eva02_clip import saved as eva02_clip
from .test_long_clip import saved as long_clip
from .test_open_clip import library
from .test_sentence import saved as sentence_model

__all__ = [
    "eva02_clip",
    "library",
    "long_clip",
    "sentence_model",
]  # fixtures

TEXTS = ["a cat", "ball", "red dogs", "a bee"]
TEXT_ONLY = "tiny-1b-cc"
TOGETHER = ("open-clip", "sentence-transformer")
"""Libraries that load both towers at once."""
SAVED = ("folder", *ROWS)
"""Encoders that ``save_encoder`` writes."""
OWN_PREPROCESSING = ("fake", "folder", "sentence-transformer")
"""Encoders without a reference implementation whose preprocessing could be repeated."""
NAMES = ["fake", "folder", *FAMILIES, "eva02-clip", "long-clip", *ROWS, TEXT_ONLY, *TOGETHER]


@dataclass(frozen=True)
class Case:
    name: str
    load: Callable[..., Encoder]

    @property
    def reads_images(self) -> bool:
        return self.name != TEXT_ONLY


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    name: str = request.param
    if name == "fake":
        return Case(name, FakeEncoder)
    if name in FAMILIES:
        where = request.getfixturevalue("references")[name].folder
    elif name in (*ROWS, TEXT_ONLY):
        request.getfixturevalue("models")
        where = name
    elif name == "open-clip":
        request.getfixturevalue("library")
        where = "open_clip:ViT-T-8/tiny_s1b"
    elif name == "sentence-transformer":
        where = f"st:{request.getfixturevalue('sentence_model')[0]}"
    else:
        fixture = {"folder": "tiny_folder", "eva02-clip": "eva02_clip", "long-clip": "long_clip"}[name]
        where = request.getfixturevalue(fixture)
    return Case(name, partial(load_encoder, where, **{"device": "cpu", "dtype": "float32"}))


@pytest.fixture
def encoder(case: Case) -> Encoder:
    return case.load()


@pytest.fixture
def images_encoder(case: Case) -> Encoder:
    if not case.reads_images:
        pytest.skip("reads no images")
    return case.load()


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in ((28, 28), (40, 31), (31, 57), (90, 29))
    ]


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4)


def test_encode_texts_gives_unit_rows_in_any_batches(encoder: Encoder):
    vectors = encoder.encode_texts(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((4, encoder.info.dim), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.linalg.matrix_rank(vectors) == 4
    for size in (1, 3):
        close(encoder.encode_texts(TEXTS, batch_size=size), vectors)
    close(encoder.encode_texts(TEXTS[::-1], batch_size=2), vectors[::-1])
    vectors += 1  # they are the caller's


def test_encode_images_gives_unit_rows_in_any_batches(images_encoder: Encoder):
    vectors = images_encoder.encode_images(images())
    assert (vectors.shape, vectors.dtype) == ((4, images_encoder.info.dim), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.linalg.matrix_rank(vectors) == 4
    for size in (1, 3):
        close(images_encoder.encode_images(images(), batch_size=size), vectors)
    close(images_encoder.encode_images(images()[::-1], batch_size=2), vectors[::-1])


def top_ten(queries: np.ndarray, vectors: np.ndarray) -> list[list[int]]:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10].tolist()


@pytest.mark.filterwarnings("ignore::llm2clip.encoders.TextTooLongWarning")
def test_a_vector_does_not_depend_on_its_neighbours(encoder: Encoder, case: Case):
    # Lengths differ, so that texts are padded differently, and one is cut to the limit.
    texts = ["a", *TEXTS, *(f"{one} {two}" for one in TEXTS for two in TEXTS[:2]), "a red ball " * 30]
    alone = np.concatenate([encoder.encode_texts([text]) for text in texts])
    vectors, kinds = alone, [(encoder.encode_texts, texts, alone)]
    if case.reads_images:
        rng = np.random.default_rng(1)
        several = [
            *images(),
            *(Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(12)),
        ]
        vectors = np.concatenate([encoder.encode_images([each]) for each in several])
        kinds.append((encoder.encode_images, several, vectors))
    best = top_ten(alone, vectors)
    for encode, items, expected in kinds:
        for size in (2, 7, 64):
            together = encode(items, batch_size=size)
            assert (together * expected).sum(1).min() >= 0.99999
            if items is not texts:
                assert top_ten(alone, together) == best
            else:
                assert top_ten(together, vectors) == best


def test_encode_prepared_is_encode_images(images_encoder: Encoder):
    expected = images_encoder.encode_images(images())
    prepared = [images_encoder.prepare(image) for image in images()]
    assert [(one.width, one.height) for one in prepared] == [image.size for image in images()]
    pixels = [one.pixels for one in prepared]
    close(images_encoder.encode_prepared(pixels), expected)
    size = images_encoder.info.image_size
    if size:
        stacked = np.stack(pixels)
        assert (stacked.shape, stacked.dtype) == ((4, size, size, 3), np.uint8)
        close(images_encoder.encode_prepared(stacked[::-1]), expected[::-1])
        stacked.flags.writeable = False
        close(images_encoder.encode_prepared(stacked), expected)
        with pytest.raises(ValueError, match=rf"pixels must be uint8 of shape \(n, {size}, {size}, 3\)"):
            images_encoder.encode_prepared(stacked[:, 1:])


def test_nothing_gives_no_rows(case: Case, encoder: Encoder):
    none = (0, encoder.info.dim)
    assert encoder.encode_texts([]).shape == encoder.encode_prepared([]).shape == none
    assert encoder.encode_images([]).shape == none
    assert encoder.count_tokens([]) == []


def test_encode_texts_warns_of_cuts_and_refuses_blanks(encoder: Encoder):
    limit = encoder.info.max_text_tokens
    text = "a red ball and " * limit
    (count,) = encoder.count_tokens([text])
    assert count > limit
    with pytest.warns(TextTooLongWarning, match=f"only the first {limit} of {count} tokens were read"):
        cut = encoder.encode_texts([text])
    np.testing.assert_allclose(np.linalg.norm(cut), 1, atol=1e-6)
    with pytest.raises(ValueError, match="text 2 of 2 is empty"):
        encoder.encode_texts(["a", " \n"])


def test_prepare_refuses_what_is_no_image(images_encoder: Encoder):
    with pytest.raises(ImageError, match=r"^empty file$"):
        images_encoder.prepare(b"")
    with pytest.raises(ImageError, match=r"^image 2 of 2: not an image$"):
        images_encoder.encode_images([images()[0], b"neither PNG nor JPEG"])


def test_prepare_with_draft_tells_the_original_size(images_encoder: Encoder):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((2048, 1024)).save(buffer, "JPEG")
    whole = images_encoder.prepare(buffer.getvalue())
    draft = images_encoder.prepare(buffer.getvalue(), draft=True)
    assert (draft.width, draft.height) == (whole.width, whole.height) == (2048, 1024)
    assert draft.pixels.shape == whole.pixels.shape
    assert np.abs(draft.pixels.astype(int) - whole.pixels).max() < 12


def test_info_is_the_same_after_every_load(case: Case, encoder: Encoder):
    info = encoder.info
    assert case.load().info == info
    identity = info.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert len(info.settings_sha256) == 64
    assert len(info.weights_sha256) == (64 if case.reads_images else 0)
    assert (info.preprocessing == "none") == (not case.reads_images)
    assert info.parameters > 0 or case.name == "fake"
    assert encoder.runtime == Runtime(device="cpu", image_dtype="float32", text_dtype="float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(case: Case, encoder: Encoder, dtype: str):
    if case.name == "fake":
        pytest.skip("has no precision")
    half = case.load(dtype=dtype)
    assert (encoder.encode_texts(TEXTS) * half.encode_texts(TEXTS)).sum(1).min() > 0.999
    if case.reads_images:
        least = 0.99 if case.name == "folder" else 0.999
        assert (encoder.encode_images(images()) * half.encode_images(images())).sum(1).min() > least
    assert half.info.identity() == encoder.info.identity()
    assert half.runtime.text_dtype == dtype
    assert half.runtime.image_dtype == (dtype if case.reads_images else "float32")


def test_towers_are_loaded_on_first_use(case: Case, encoder: Encoder):
    if not isinstance(encoder, DualEncoder) or case.name in TOGETHER:
        pytest.skip("loads both at once")
    assert encoder.info.dim
    assert encoder.loaded_sides == set()
    encoder.encode_texts(TEXTS)
    assert encoder.loaded_sides == {"text"}
    if not case.reads_images:
        with pytest.raises(ModelError, match="is a language model only and cannot encode images"):
            encoder.encode_images(images())
        return
    encoder = case.load()
    with ThreadPoolExecutor(4) as pool:
        vectors = list(pool.map(lambda _: encoder.encode_images(images()), range(4)))
    assert all(np.array_equal(vectors[0], other) for other in vectors)
    assert encoder.loaded_sides == {"vision"}
    encoder.load_all()
    assert encoder.loaded_sides == {"text", "vision"}


def test_reference_preprocessing_is_another_encoder(case: Case, encoder: Encoder):
    if case.name in OWN_PREPROCESSING:
        pytest.skip("has no reference")
    info, other = encoder.info, case.load(preprocessing="reference").info
    assert other.identity() != info.identity()
    if case.reads_images:
        assert other.preprocessing.startswith(("upstream-convert-first/", "upstream-resize-first/"))


def test_save_encoder_and_load_it_again(case: Case, encoder: Encoder, tmp_path: Path):
    if case.name not in SAVED:
        with pytest.raises(ValueError, match="is not a published LLM2CLIP encoder, and cannot be saved"):
            save_encoder(encoder, tmp_path / "saved")
        return
    save_encoder(encoder, tmp_path / "saved")
    again = load_encoder(tmp_path / "saved", device="cpu", dtype="float32")
    assert replace(again.info, name=encoder.info.name) == encoder.info
    assert np.array_equal(again.encode_texts(TEXTS), encoder.encode_texts(TEXTS))
    assert np.array_equal(again.encode_images(images()), encoder.encode_images(images()))
