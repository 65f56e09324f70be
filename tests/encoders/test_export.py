"""Encoders written as one folder, towers for other programs, and the text side in sentence-transformers' clothes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llm2clip.encoders import (
    ModelError,
    as_sentence_transformer,
    load_encoder,
    save_encoder,
    save_vision_tower,
)
from llm2clip.encoders.llm2clip.published import PublishedFiles

from .published_files import LLAMAS, ROWS, tower_file

TEXTS = ["a red bicycle in the rain", "两只猫在睡觉", "Hund", "a very long caption of two dogs and one ball"]


def sample_images(side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (side, side + n, 3), dtype=np.uint8)) for n in range(3)]


def forget(models: Path) -> None:
    """Nothing of what was published is on this machine any more."""
    shutil.rmtree(models)


@pytest.mark.parametrize("name", ROWS)
def test_save_encoder_needs_no_other_files(models: Path, tmp_path: Path, name: str):
    encoder = load_encoder(name)
    images, texts, info = encoder.encode_images(sample_images()), encoder.encode_texts(TEXTS), encoder.info
    save_encoder(encoder, tmp_path / "saved")
    forget(models)
    again = load_encoder(tmp_path / "saved")
    assert isinstance(again.source, PublishedFiles)
    np.testing.assert_array_equal(again.encode_images(sample_images()), images)
    np.testing.assert_array_equal(again.encode_texts(TEXTS), texts)
    assert again.info == info
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_save_encoder_of_a_saved_encoder_is_identical(models: Path, tmp_path: Path):
    save_encoder(load_encoder("tiny-siglip"), tmp_path / "a")
    save_encoder(load_encoder(tmp_path / "a"), tmp_path / "b")
    forget(models)
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert Path("language_model/lora/adapter_model.safetensors") in files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_load_saved_applies_preprocessing_option(models: Path, tmp_path: Path):
    save_encoder(load_encoder("tiny-eva", parity="upstream"), tmp_path / "saved")
    native, upstream = (load_encoder(tmp_path / "saved", parity=parity) for parity in ("native", "upstream"))
    assert native.info.preprocessing.startswith("rgb-on-white/")
    assert upstream.info.preprocessing.startswith("upstream-resize-first/")
    assert upstream.text_tower.reader.rules.parity == "upstream"
    assert native.text_tower.reader.rules.doc_max_length == 400


def test_save_encoder_by_reference_finds_the_language_model(models: Path, tmp_path: Path):
    encoder = load_encoder("tiny-openai")
    texts = encoder.encode_texts(TEXTS)
    save_encoder(encoder, tmp_path / "saved", language_model="reference")
    assert not (tmp_path / "saved" / "language_model").exists()
    np.testing.assert_array_equal(load_encoder(tmp_path / "saved").encode_texts(TEXTS), texts)
    forget(models)
    alone = load_encoder(tmp_path / "saved")
    assert alone.encode_images(sample_images()).shape == (3, 16)
    with pytest.raises(ModelError, match="tiny-8b-cc is not on this machine"):
        alone.encode_texts(TEXTS)


def test_save_encoder_refuses_reference_to_a_local_model(models: Path, tmp_path: Path):
    encoder = load_encoder("tiny-openai", language_model=LLAMAS["tiny-8b-cc"] / "model")
    with pytest.raises(ValueError, match="model is no published language model, and can only be copied"):
        save_encoder(encoder, tmp_path / "saved", language_model="reference")
    texts = encoder.encode_texts(TEXTS)
    save_encoder(encoder, tmp_path / "saved")
    np.testing.assert_array_equal(load_encoder(tmp_path / "saved").encode_texts(TEXTS), texts)


def test_save_encoder_keeps_settings_of_a_local_tower(models: Path, tmp_path: Path):
    from safetensors.torch import save_file

    tensors = tower_file("eva02", width=64, seed=4)
    (tmp_path / "mine").mkdir()
    save_file(
        {name: value for name, value in tensors.items() if "rope" not in name},
        tmp_path / "mine" / "model.safetensors",
    )
    encoder = load_encoder(tmp_path / "mine", language_model="tiny-8b-cc")
    save_encoder(encoder, tmp_path / "saved")
    forget(models)
    again = load_encoder(tmp_path / "saved")
    assert again.info == encoder.info
    np.testing.assert_array_equal(
        again.encode_images(sample_images()), encoder.encode_images(sample_images())
    )


def test_load_saved_notices_altered_files(models: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    encoder = load_encoder("tiny-eva")
    save_encoder(encoder, tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    tensors = load_file(file)
    tensors["visual.norm.bias"][0] += 1
    save_file(tensors, file)
    assert load_encoder(tmp_path / "saved").info.weights_sha256 != encoder.info.weights_sha256


def test_load_saved_refuses_a_path_as_reference(models: Path, tmp_path: Path):
    save_encoder(load_encoder("tiny-openai"), tmp_path / "saved", language_model="reference")
    path = tmp_path / "saved" / "config.json"
    for told in (str(LLAMAS["tiny-8b-cc"] / "model"), "../models", "llama-9"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"language_model": told}))
        with pytest.raises(
            ModelError, match=r"config\.json: language_model is '.*', expected one of tiny-8b-cc"
        ):
            load_encoder(tmp_path / "saved")
    save_encoder(load_encoder("tiny-openai"), tmp_path / "whole")
    (tmp_path / "whole" / "language_model").rename(tmp_path / "outside")
    (tmp_path / "whole" / "language_model").symlink_to(tmp_path / "outside")
    with pytest.raises(ModelError, match="language_model is a link that leads out of its folder"):
        load_encoder(tmp_path / "whole")
    with pytest.raises(ValueError, match="language_model must be 'copy' or 'reference', got 'none'"):
        save_encoder(load_encoder("tiny-openai"), tmp_path / "other", language_model="none")


def test_save_encoder_overwrites_nothing(models: Path, tmp_path: Path):
    encoder = load_encoder("tiny-openai")
    (tmp_path / "saved").mkdir()
    save_encoder(encoder, tmp_path / "saved")
    with pytest.raises(ValueError, match="saved is not empty; name another folder"):
        save_encoder(encoder, tmp_path / "saved")


def test_load_saved_refuses_another_version(models: Path, tmp_path: Path):
    save_encoder(load_encoder("tiny-openai"), tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"version": 2}))
    with pytest.raises(ModelError, match="format version 2, this release reads 1"):
        load_encoder(tmp_path / "saved")
    path.write_text(json.dumps(config | {"colour": "red"}))
    with pytest.raises(ModelError, match=r"unknown keys: \['colour'\]"):
        load_encoder(tmp_path / "saved")


def test_save_vision_tower_loads_in_transformers(models: Path, tmp_path: Path):
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModel,
        CLIPVisionModelWithProjection,
    )

    encoder = load_encoder("tiny-openai")
    save_vision_tower(encoder, tmp_path / "eye")
    theirs, loading = CLIPVisionModel.from_pretrained(tmp_path / "eye", output_loading_info=True)
    assert not any(loading.values())
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "eye")
    pixels = processor(images=sample_images(), return_tensors="pt").pixel_values
    sizes = {"hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 1}
    whole = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=16)
    ).eval()
    tensors = tower_file("openai", width=64)
    whole.load_state_dict({name: tensors[name] for name in whole.state_dict()})
    with torch.no_grad():
        got = theirs.eval()(pixels, output_hidden_states=True)
        expected = whole(pixels, output_hidden_states=True)
        projected = got.pooler_output @ tensors["visual_projection.weight"].T
    for ours, wanted in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-5)
    vectors = torch.nn.functional.normalize(projected, dim=-1).numpy()
    np.testing.assert_allclose(encoder.encode_images(sample_images()), vectors, atol=1e-5)
    # Written as older releases name the tensors, too: the published spelling.
    from safetensors import safe_open

    with safe_open(tmp_path / "eye" / "model.safetensors", "pt") as file:
        assert all(name.startswith("vision_model.") for name in file.keys())  # noqa: SIM118
    assert encoder.loaded_sides == {"vision"}


def test_save_vision_tower_refuses_other_layouts(models: Path, tmp_path: Path):
    with pytest.raises(
        ModelError, match="tiny-eva has a tower of the layout eva02, which CLIPVisionModel does not support"
    ):
        save_vision_tower(load_encoder("tiny-eva"), tmp_path / "eye")
    save_vision_tower(load_encoder("tiny-openai"), tmp_path / "eye")
    with pytest.raises(ValueError, match="eye is not empty"):
        save_vision_tower(load_encoder("tiny-openai"), tmp_path / "eye")


@pytest.mark.parametrize("parity", ["native", "upstream"])
def test_as_sentence_transformer_equals_encode_texts(models: Path, parity: str):
    encoder = load_encoder("tiny-openai", parity=parity, dtype="float32")
    view = as_sentence_transformer(encoder)
    got = view.encode(TEXTS, batch_size=2, show_progress_bar=False)
    np.testing.assert_allclose(got, encoder.encode_texts(TEXTS), atol=1e-5)
    assert (view.get_embedding_dimension(), view.max_seq_length) == (16, 507)
    prompted = view.encode(TEXTS[:1], prompt="Query: ", show_progress_bar=False)
    np.testing.assert_allclose(prompted, encoder.encode_texts([f"Query: {TEXTS[0]}"]), atol=1e-5)
    scores = view.similarity(got, got)
    np.testing.assert_allclose(scores.diagonal().numpy(), np.ones(4), atol=1e-5)
    with pytest.raises(NotImplementedError, match="save the encoder 'tiny-openai' itself"):
        view[0].save("anywhere")
