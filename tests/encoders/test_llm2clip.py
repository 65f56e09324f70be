"""The composed encoder against the same composition written out by hand, and its two sides apart."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from llm2clip.encoders import DualEncoder, TextTooLongWarning, load_encoder

from .conftest import BOS, EOT, Parts

TEXTS = ["a cat", "b", "the dog over there", "zz top", "a cat"]


@pytest.fixture
def encoder(tiny_folder: Path) -> DualEncoder:
    return load_encoder(tiny_folder, device="cpu")


def unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm(dim=-1, keepdim=True)).numpy()


def text_by_hand(parts: Parts, text: str) -> np.ndarray:
    """Begin token, one token per character, end token; alone, so without padding; begin token not pooled."""
    ids = [parts.tokenizer.token_to_id(part) for part in (BOS, *text.replace(" ", "Ġ"), EOT)]
    with torch.no_grad():
        states = parts.language_model(torch.tensor([ids]))[0]
        pooled = sum(states[1:]) / (len(ids) - 1)
        return unit(parts.adapter(pooled[None])[0])


def image_by_hand(parts: Parts, pixels: np.ndarray) -> np.ndarray:
    values = (torch.from_numpy(pixels.astype(np.float64)) / 255 - 0.5) / 0.5
    with torch.no_grad():
        pooled = parts.vision(values.permute(2, 0, 1)[None].float())[0]
        return unit(parts.projection.weight @ pooled)


def noise(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_load_folder_gives_the_text_vectors_of_its_parts(encoder: DualEncoder, parts: Parts):
    expected = np.stack([text_by_hand(parts, text) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=2e-6)


def test_load_folder_gives_the_image_vectors_of_its_parts(encoder: DualEncoder, parts: Parts):
    pixels = noise(5)
    expected = np.stack([image_by_hand(parts, image) for image in pixels])
    np.testing.assert_allclose(encoder.encode_prepared(pixels), expected, atol=2e-6)


def test_llama_padding_side_does_not_matter(encoder: DualEncoder, parts: Parts):
    ids, attention, embed = encoder.text_tower.reader.batch(["a cat", "the dog over there"])
    rolled = [part.clone() for part in (ids, attention, embed)]
    shift = ids.shape[1] - int(attention[0].sum())
    for part in rolled:
        part[0] = part[0].roll(shift)
    with torch.no_grad():
        right = parts.language_model(ids, attention)[0][embed[0] == 1]
        left = parts.language_model(rolled[0], rolled[1])[0][rolled[2][0] == 1]
    assert shift > 0
    np.testing.assert_allclose(left.numpy(), right.numpy(), atol=5e-6)


def test_llama_padding_content_does_not_matter(encoder: DualEncoder, parts: Parts):
    ids, attention, _ = encoder.text_tower.reader.batch(["a", "the dog over there"])
    other = torch.where(attention == 0, 99, ids)
    with torch.no_grad():
        first, second = parts.language_model(ids, attention), parts.language_model(other, attention)
    mask = attention == 1
    assert torch.equal(first[mask], second[mask])


def test_load_folder_cuts_long_texts_with_a_warning(encoder: DualEncoder):
    # 40 tokens: begin, 38 characters, end. The limit counts what is told apart from the begin token.
    assert encoder.info.max_text_tokens == 39
    assert encoder.count_tokens(["x" * 38, "x" * 45]) == [39, 46]
    with pytest.warns(TextTooLongWarning, match=r"only the first 39 of 46 tokens were read") as caught:
        cut = encoder.encode_texts(["abcdefghi" * 5])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(cut, encoder.encode_texts([("abcdefghi" * 5)[:38]]), atol=1e-6)


def test_load_folder_does_not_import_transformers(tiny_folder: Path):
    code = (
        "import sys; from llm2clip.encoders import load_encoder\n"
        f"encoder = load_encoder({str(tiny_folder)!r}, device='cpu'); encoder.encode_texts(['a'])\n"
        "print([name for name in ('transformers', 'scipy', 'sentence_transformers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_load_folder_computes_stored_float16_in_float32(parts: Parts, tmp_path: Path):
    encoder = load_encoder(parts.save(tmp_path / "half", dtype=torch.float16), device="cpu")
    assert isinstance(encoder, DualEncoder)
    rounded = torch.nn.Linear(16, 20, bias=False)
    rounded.weight.data = parts.projection.weight.data.half().float()
    encoder.encode_prepared(noise(1))
    loaded = encoder.image_tower.module().visual_projection.weight
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, rounded.weight)


def test_load_folder_refuses_unknown_devices_and_dtypes(tiny_folder: Path):
    with pytest.raises(ValueError, match="unknown device 'gpu', expected 'auto', 'cpu', 'cuda'"):
        load_encoder(tiny_folder, device="gpu")
    with pytest.raises(ValueError, match="'cuda:99' is not there: torch sees"):
        load_encoder(tiny_folder, device="cuda:99")
    with pytest.raises(ValueError, match="unknown dtype 'int8', expected 'auto' or one of float32"):
        load_encoder(tiny_folder, dtype="int8")
