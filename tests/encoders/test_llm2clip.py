"""The composed encoder against the same composition written out by hand, and its two sides apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llm2clip.encoders import DualEncoder, load_encoder

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
