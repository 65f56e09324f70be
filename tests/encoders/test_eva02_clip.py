"""EVA02-CLIP from a ``.pt``: images against recorded features of the reference, texts against written arithmetic."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llm2clip.encoders import ModelError, load_encoder
from llm2clip.encoders.catalog.entries import find_encoder
from llm2clip.encoders.core.dual_encoder import DualEncoder

from .openai_reference import DIM, WIDTH, save_tokenizer, text_tensors, text_vectors

GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "a_eva02" / "p14_grid_eq"
POSITIONS = 20
TEXTS = ["a cat", "two red dogs", "ball!"]


def text_tower() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return text_tensors(positions=POSITIONS)


def checkpoint() -> dict[str, Tensor]:
    """The vision tower of the recorded case, and a text tower instead of its adapter."""
    vision = {
        name: tensor
        for name, tensor in load_file(GOLDEN / "weights.safetensors").items()
        if not name.startswith("text.")
    }
    return vision | {f"text.{name}": tensor for name, tensor in text_tower().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eva")
    torch.save(checkpoint(), folder / "EVA02_CLIP_B_psz16_s8B.pt")
    save_tokenizer(folder, positions=POSITIONS)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "mine"))


def test_encode_images_equals_the_reference(saved: Path):
    encoder = load_encoder(saved)
    assert isinstance(encoder, DualEncoder)
    pixels = load_file(GOLDEN / "inputs.safetensors")["pixel_values"]
    with torch.inference_mode():
        vectors = encoder.image_tower.module()(pixels)
    expected = load_file(GOLDEN / "expected.safetensors")["image_features"]
    np.testing.assert_allclose(vectors.numpy(), expected.numpy(), atol=5e-5, rtol=1e-4)
    assert encoder.loaded_sides == {"vision"}


def test_encode_texts_equals_the_original(saved: Path):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(saved)
    ids = tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    tensors = text_tower()
    expected = text_vectors(ids, tensors["positional_embedding"], tensors, F.gelu)
    encoder = load_encoder(saved)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5, rtol=1e-4)
    assert isinstance(encoder, DualEncoder)
    assert encoder.loaded_sides == {"text"}


def test_info_of_eva02_clip(saved: Path):
    info = load_encoder(saved).info
    assert (info.family, info.dim, info.image_size, info.max_text_tokens) == (
        "eva02-clip",
        DIM,
        56,
        POSITIONS,
    )
    tables = {name for name in checkpoint() if ".rope." in name}
    assert info.parameters == sum(t.numel() for name, t in checkpoint().items() if name not in tables)
    assert info.preprocessing.startswith("rgb-on-white/shortest-crop-half-even/bicubic-56/mean.48145466,")
    assert info.note.startswith("EVA02-CLIP B/16")


def test_load_eva02_clip_reads_old_biases(saved: Path, folder: Path):
    """As in the files of before LLM2CLIP."""
    tensors = checkpoint()
    for name in [name for name in tensors if name.endswith(("attn.q_proj.bias", "attn.v_proj.bias"))]:
        tensors[name.replace("_proj.bias", "_bias")] = tensors.pop(name)
    torch.save(tensors, folder / "EVA02_CLIP_B_psz16_s8B.pt")
    image = [np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)]
    assert np.array_equal(load_encoder(folder).encode_images(image), load_encoder(saved).encode_images(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text.ln_final.weight": None}, r"missing tensors: text\.ln_final\.weight"),
        ({"text.stray": torch.zeros(2)}, r"unexpected tensors: text\.stray"),
        ({"visual.norm.weight": None}, r"missing tensors: visual\.norm\.weight"),
        ({"text.text_projection": torch.zeros(WIDTH, 8)}, "gives vectors of 8, the vision tower of 24"),
        ({"text.positional_embedding": torch.zeros(3)}, "expected 2 axes, none empty"),
    ],
)
def test_load_eva02_clip_names_wrong_tensors(change: dict[str, Tensor | None], message: str, folder: Path):
    tensors = {name: tensor for name, tensor in {**checkpoint(), **change}.items() if tensor is not None}
    torch.save(tensors, folder / "EVA02_CLIP_B_psz16_s8B.pt")
    with pytest.raises(ModelError, match=message):
        load_encoder(folder).encode_texts(["cat"])


def test_load_encoder_finds_eva02_clip_by_name(saved: Path, data_home: Path):
    shutil.copytree(saved, data_home / "models" / "EVA-CLIP")
    encoder = load_encoder("eva02-clip-b-16")
    assert encoder.info.name == "eva02-clip-b-16"
    assert np.array_equal(encoder.encode_texts(["cat"]), load_encoder(saved).encode_texts(["cat"]))


def test_load_encoder_refuses_another_file_of_that_name(
    saved: Path, data_home: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(saved, data_home / "models" / "EVA-CLIP")
    row = find_encoder("eva02-clip-b-16")
    assert row is not None
    size = (saved / row.weights).stat().st_size
    for known, message in (
        (replace(row, weights_bytes=5), rf"has {size:,} bytes, the published file 5; fetch it again"),
        (replace(row, weights_sha256="00"), r"is another file: SHA-256 [0-9a-f]{64}, expected 00"),
    ):
        monkeypatch.setattr("llm2clip.encoders.registry.find_encoder", lambda _, known=known: known)
        with pytest.raises(ModelError, match=message):
            load_encoder("eva02-clip-b-16")
