"""Published encoders by name: tiny ones in the published layouts, against recorded states and transformers."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from llm2clip.encoders import ModelError, TextTooLongWarning, load_encoder

from .published_files import LLAMAS, PREFIXES, ROWS, tower_file

WIDTHS = {"tiny-8b-cc": 64, "tiny-1b-cc": 48, "tiny-lora-cc": 64}
TEXTS = ["a red bicycle in the rain", "两只猫在睡觉", "Hund"]


def recorded(language: str) -> tuple[list[str], torch.Tensor]:
    """Texts and states that the original gave for each of them alone, of those that its mistakes do not touch."""
    folder = LLAMAS[language]
    setting = folder / ("card_1b" if language == "tiny-1b-cc" else "card_8b")
    items = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    tokens = json.loads((setting / "tokens.json").read_text(encoding="utf-8"))
    states = load_file(setting / "expected.safetensors")["embeddings_alone"]
    kept = [
        number
        for number, (item, row) in enumerate(zip(items, tokens, strict=True))
        if item["text"].strip() and row["n_pooled"] > 0
    ]
    return [items[number]["text"] for number in kept], states[kept]


def adapted(
    states: torch.Tensor, tensors: dict[str, torch.Tensor], prefix: str, *, unit: bool
) -> NDArray[np.float32]:
    """The adapter spelt out: 4 x (x + W2 gelu(W1 ln(x))), ln, W; then unit rows."""
    part = {
        name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)
    }

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], part[f"{name}.weight"], part[f"{name}.bias"], 1e-5)

    x = F.normalize(states, dim=-1) if unit else states
    for number in range(4):
        x = x + layer(f"{number}.fn.3", F.gelu(layer(f"{number}.fn.0", norm(f"{number}.ln", x))))
    return F.normalize(layer("5", norm("4", x)), dim=-1).numpy()


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in ((28, 28), (40, 31), (31, 57))
    ]


@pytest.mark.filterwarnings("ignore::llm2clip.encoders.TextTooLongWarning")
@pytest.mark.parametrize("name", ["tiny-openai", "tiny-eva"])
def test_load_published_encodes_texts_as_the_original(models: Path, name: str):
    layout, language, _, _ = ROWS[name]
    texts, states = recorded(language)
    tensors = tower_file(layout, width=WIDTHS[language])
    encoder = load_encoder(name, parity="upstream", dtype="float32")
    got = np.concatenate([encoder.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(
        got, adapted(states, tensors, PREFIXES[layout], unit=True), atol=5e-5, rtol=1e-4
    )
    wrong = adapted(states, tensors, PREFIXES[layout], unit=False)
    assert np.abs(got - wrong).max() > 0.01


def test_load_published_native_equals_reference_without_its_mistakes(models: Path):
    native, upstream = (
        load_encoder("tiny-openai", parity=parity, dtype="float32") for parity in ("native", "upstream")
    )
    np.testing.assert_allclose(native.encode_texts(TEXTS), upstream.encode_texts(TEXTS), atol=1e-5)
    broken = "猫" * 700
    with pytest.warns(TextTooLongWarning):
        ours, theirs = native.encode_texts([broken]), upstream.encode_texts([broken])
    assert np.abs(ours - theirs).max() > 1e-3


def test_load_published_siglip_rounds_states_and_keeps_their_length(models: Path):
    from llm2clip.encoders.text.llm_checkpoint import open_language

    encoder = load_encoder("tiny-siglip", dtype="float32")
    plan = open_language(LLAMAS["tiny-8b-cc"] / "model", update=models / "tiny-siglip" / "lora")
    reader, model = encoder.text_tower.reader, plan.load()
    rows = []
    for text in TEXTS:
        ids, attention, pooled = reader.batch([text])
        rows.append((model(ids, attention) * pooled[..., None]).sum(1) / pooled.sum())
    states = torch.cat(rows)
    tensors = tower_file("siglip2", width=64)
    expected = adapted(states.half().float(), tensors, PREFIXES["siglip2"], unit=False)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5)
    exact = adapted(states, tensors, PREFIXES["siglip2"], unit=False)
    assert np.abs(expected - exact).max() > 1e-5
    # The update counts.
    bare = LLAMAS["tiny-8b-cc"] / "model"
    other = load_encoder("tiny-siglip", language_model=bare, dtype="float32").encode_texts(TEXTS)
    assert np.abs(other - expected).max() > 1e-3


def test_load_published_converts_pickles_once(models: Path):
    first = load_encoder("tiny-eva")
    vectors = first.encode_images(images())
    converted = first.source.vision.plan.path
    assert converted.suffix == ".safetensors"
    assert converted.parent.parent == models / "converted"
    stamp = converted.stat().st_mtime_ns
    second = load_encoder("tiny-eva")
    assert second.source.vision.plan.path == converted
    assert converted.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(second.encode_images(images()), vectors)
    assert (
        second.info.weights_sha256
        == hashlib.sha256((models / "tiny-eva" / "tiny.pt").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("name", ROWS)
def test_load_published_info_and_found(models: Path, name: str):
    layout, language, _, _ = ROWS[name]
    encoder = load_encoder(name)
    info = encoder.info
    assert (info.name, info.family, info.dim, info.image_size) == (name, "llm2clip", 16, 28)
    assert (
        info.max_text_tokens
        == (401 if language == "tiny-1b-cc" else 507)
        == encoder.text_tower.reader.capacity
    )
    assert info.preprocessing.startswith(
        "rgb-on-white/shortest-crop/" if layout == "openai" else "rgb-on-white/shortest-crop-half-even/"
    )
    tower = sum(v.numel() for k, v in tower_file(layout, width=WIDTHS[language]).items() if "rope" not in k)
    assert info.parameters == tower + encoder.text_tower.source.plan.parameters
    assert encoder.loaded_sides == frozenset()
    assert f"{layout} tower" in encoder.found
    assert encoder.found[-1].startswith("texts wrapped as a turn of Llama 3, up to ")
    if layout == "siglip2":
        assert "low-rank update of lora merged" in encoder.found


def test_load_published_encodes_images_without_language_model(models: Path):
    shutil.rmtree(models / "tiny-8b")
    encoder = load_encoder("tiny-openai")
    assert encoder.encode_images(images()).shape == (3, 16)
    assert encoder.info.max_text_tokens == 507
    with pytest.raises(ModelError, match="tiny-8b-cc is not on this machine"):
        encoder.encode_texts(TEXTS)


def test_encode_features_needs_no_language_model(models: Path):
    encoder = load_encoder("tiny-openai")
    vectors = encoder.encode_texts(TEXTS)
    states = np.concatenate([encoder.language_features([text]) for text in TEXTS])
    assert states.shape == (3, 64)
    other = load_encoder("tiny-openai")
    np.testing.assert_allclose(other.encode_features(states), vectors, atol=1e-6)
    assert other.loaded_sides == frozenset()
    with pytest.raises(ModelError, match="reads states of width 64, got 48; were they made by another"):
        other.encode_features(np.ones((2, 48), np.float32))


def test_load_published_names_the_right_pair(models: Path):
    shutil.rmtree(models / "tiny-openai")  # nothing is looked for before the names fit
    with pytest.raises(ModelError) as caught:
        load_encoder("tiny-openai", language_model="tiny-1b-cc")
    assert str(caught.value) == (
        "tiny-openai reads language models of width 64, but tiny-1b-cc is 48 wide; its partner is tiny-8b-cc; "
        "tiny-1b-cc goes with tiny-eva"
    )


def test_load_published_refuses_a_language_model_of_another_width(
    models: Path, monkeypatch: pytest.MonkeyPatch
):
    encoder = load_encoder("tiny-openai", language_model=LLAMAS["tiny-1b-cc"] / "model")
    encoder.encode_images(images())
    monkeypatch.setattr("llm2clip.encoders.text.llm_checkpoint.LanguagePlan.load", None)
    with pytest.raises(
        ModelError, match="reads language models of width 64, but model is 48 wide; its partner"
    ):
        encoder.encode_texts(TEXTS)


def test_load_published_warns_of_an_untrained_pair(models: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="llm2clip.encoders"):
        encoder = load_encoder("tiny-siglip", language_model="tiny-8b-cc")
    assert "tiny-siglip was trained with tiny-lora-cc, not with tiny-8b-cc" in caplog.text
    assert encoder.encode_texts(TEXTS).shape == (3, 16)


def test_load_text_only_gives_states_and_refuses_images(models: Path):
    encoder = load_encoder("tiny-1b-cc", parity="upstream")
    texts, states = recorded("tiny-1b-cc")
    with pytest.warns(TextTooLongWarning):
        got = np.concatenate([encoder.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(got, F.normalize(states, dim=-1).numpy(), atol=5e-5, rtol=1e-4)
    assert (encoder.info.dim, encoder.info.image_size, encoder.info.preprocessing) == (48, 0, "none")
    with pytest.raises(ModelError, match="tiny-1b-cc is a language model only and cannot encode images"):
        encoder.encode_images(images())


def test_load_published_accepts_a_merged_model_for_an_update(models: Path):
    expected = load_encoder("tiny-openai", dtype="float32").language_features(TEXTS[:1])
    lora = models / "tiny-siglip" / "lora"
    shutil.rmtree(lora)
    shutil.copytree(LLAMAS["tiny-8b-cc"] / "model", lora)
    shutil.rmtree(models / "tiny-31-8b")
    encoder = load_encoder("tiny-siglip", dtype="float32")
    np.testing.assert_allclose(encoder.language_features(TEXTS[:1]), expected, atol=1e-6)
    assert not any("low-rank" in line for line in encoder.found)


def test_load_published_follows_preprocessor_config(models: Path):
    settings = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": 28, "width": 28},
    }
    (models / "tiny-siglip" / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = load_encoder("tiny-siglip")
    assert encoder.info.preprocessing == "rgb-on-white/squash/bicubic-28/mean.5std.5"
    assert "images prepared as preprocessor_config.json says" in encoder.found


def spoil(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def without_adapter(tensors: dict) -> None:
    for name in [name for name in tensors if name.startswith("text_adapter.")]:
        del tensors[name]


def test_load_published_refuses_another_file_of_that_name(models: Path):
    path = models / "tiny-openai" / "model.safetensors"
    spoil(path, without_adapter)
    with pytest.raises(ModelError) as caught:
        load_encoder("tiny-openai")
    said = str(caught.value)
    assert "is not the published tiny-openai: trained numbers: " in said
    assert "no text adapter. Fetch model.safetensors again from ms/tiny-openai." in said
    assert said.endswith("Known of it: it is tiny.")
    encoder = load_encoder(path.parent, language_model="tiny-8b-cc")
    assert encoder.encode_images(images()).shape == (3, 16)
    with pytest.raises(
        ModelError, match="holds a vision tower without the text adapter, so it cannot read texts"
    ):
        encoder.encode_texts(TEXTS)


def test_load_published_refuses_a_tokenizer_of_another_model(models: Path, tmp_path: Path):
    from .conftest import byte_tokenizer

    file = shutil.copytree(models / "tiny-8b", tmp_path / "llama") / "tokenizer.json"
    reasons = []
    for spoilt in ("", "{", byte_tokenizer().to_str()):
        file.write_text(spoilt) if spoilt else file.unlink()
        with pytest.raises(ModelError) as caught:
            load_encoder("tiny-openai", language_model=file.parent).encode_texts(TEXTS)
        reasons.append(str(caught.value))
    assert reasons[0].endswith("llama has no tokenizer.json; copy it from the model's repository")
    assert "tokenizer.json is not a tokenizer file: " in reasons[1]
    assert "does not fit the rules of llama: the tokenizer has no token '<|start_header_id|>': " in reasons[2]


def test_load_encoder_refuses_unknown_options(models: Path):
    with pytest.raises(ValueError, match="unknown dtype 'int3', expected 'auto' or one of float32, "):
        load_encoder("tiny-openai", dtype="int3")
    with pytest.raises(ValueError, match="preprocessing must be 'native' or 'reference', got 'both'"):
        load_encoder("tiny-openai", preprocessing="both")
    with pytest.raises(
        ValueError, match=r"parity must be 'native' or 'upstream', got 'both'; its new name is"
    ):
        load_encoder("tiny-openai", parity="both")
    with pytest.raises(ValueError, match="got preprocessing='reference' and parity='native'"):
        load_encoder("tiny-openai", preprocessing="reference", parity="native")
    with pytest.raises(ModelError, match=r"unknown language model 'llama-9'.*known: tiny-8b-cc, tiny-1b-cc"):
        load_encoder("tiny-openai", language_model="llama-9")
    with pytest.raises(ValueError, match="nano has no choice of language models"):
        load_encoder("nano", language_model="tiny-8b-cc")
