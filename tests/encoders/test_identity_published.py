"""What tells published encoders and baselines apart: language model, rules, tokenizer, settings; not a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llm2clip.encoders import DualEncoder, load_encoder, save_encoder
from llm2clip.encoders.baselines.open_clip_models import settings_hash as open_clip_hash
from llm2clip.encoders.baselines.sentence_transformer import model_settings
from llm2clip.encoders.core.files import sampled_sha256

from .published_files import LLAMAS


@pytest.fixture
def language(tmp_path: Path) -> Path:
    """A folder of a language model that a test may spoil."""
    return Path(shutil.copytree(LLAMAS["tiny-8b-cc"] / "model", tmp_path / "language"))


def settings(name: str | Path, **options: object) -> str:
    return load_encoder(name, **options).info.settings_sha256  # type: ignore[arg-type]


def test_settings_sha256_depends_on_language_model_and_rules(models: Path):
    found = {
        settings("tiny-siglip"),
        settings("tiny-siglip", language_model="tiny-8b-cc"),
        settings("tiny-siglip", language_model=LLAMAS["tiny-8b-cc"] / "model"),
        settings("tiny-siglip", parity="upstream"),
        settings("tiny-openai"),
    }
    assert len(found) == 5
    assert settings("tiny-8b-cc") != settings("tiny-1b-cc")
    assert settings("tiny-8b-cc") != settings("tiny-8b-cc", parity="upstream")


def test_identity_needs_no_language_model(models: Path):
    before = load_encoder("tiny-openai").info.identity()
    shutil.rmtree(models / "tiny-8b")
    encoder = load_encoder("tiny-openai")
    assert encoder.info.identity() == before
    assert isinstance(encoder, DualEncoder)
    assert encoder.loaded_sides == frozenset()


def test_settings_sha256_of_local_language_model(models: Path, language: Path, tmp_path: Path):
    before = settings("tiny-openai", language_model=language)
    moved = Path(shutil.copytree(language, tmp_path / "moved"))
    assert settings("tiny-openai", language_model=moved) == before
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "transformers_version": "4.0.0"}))
    assert settings("tiny-openai", language_model=moved) == before
    (moved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert settings("tiny-openai", language_model=moved) != before


def test_settings_sha256_depends_on_files_of_language_model(models: Path, language: Path):
    found = {settings("tiny-openai", language_model=language)}
    file = sorted(language.glob("*.safetensors"))[-1]
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)
    found.add(settings("tiny-openai", language_model=language))
    data = json.loads((language / "tokenizer.json").read_text(encoding="utf-8"))
    data["normalizer"] = {"type": "Lowercase"}
    (language / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    found.add(settings("tiny-openai", language_model=language))
    assert len(found) == 3


def test_identity_of_saved_copy(models: Path, tmp_path: Path):
    before = load_encoder("tiny-openai").info
    save_encoder(load_encoder("tiny-openai"), tmp_path / "saved")
    assert load_encoder(tmp_path / "saved").info.identity() == before.identity()
    config = tmp_path / "saved" / "language_model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 0.1}))
    after = load_encoder(tmp_path / "saved").info
    assert after.weights_sha256 == before.weights_sha256
    assert after.settings_sha256 != before.settings_sha256


def test_model_settings_of_sentence_transformers(tmp_path: Path):
    folder = tmp_path / "model"
    (folder / "1_Dense").mkdir(parents=True)
    (folder / "onnx").mkdir()
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Dense"}]))
    (folder / "1_Dense" / "config.json").write_text(json.dumps({"in_features": 3}))
    prompts = {"__version__": {"transformers": "5"}, "prompts": {"query": "find "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (folder / "vocab.txt").write_text("a")
    before = model_settings(folder)
    assert set(before) == {
        "modules.json",
        "1_Dense/config.json",
        "config_sentence_transformers.json",
        "vocab.txt",
    }
    # What is for other programs, or about other releases, does not count; nor does the folder's name.
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts | {"__version__": {}}))
    folder = folder.rename(tmp_path / "moved")
    assert model_settings(folder) == before
    for file, text in (("vocab.txt", "b"), ("config_sentence_transformers.json", '{"prompts": {}}')):
        (folder / file).write_text(text)
        assert model_settings(folder)[file] != before[file]


class Tokens:
    """As far as open_clip's are asked."""

    def __init__(self, length: int) -> None:
        self.context_length = length


def test_settings_hash_of_open_clip(tmp_path: Path):
    found = {
        open_clip_hash(name, Tokens(length))
        for name, length in (("ViT-B-32", 77), ("ViT-B-32-quickgelu", 77), ("ViT-B-32", 64))
    }
    assert len(found) == 3
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "open_clip_config.json").write_text("[]" if name == "c" else "{}")
    first, second, third = (open_clip_hash(f"local-dir:{tmp_path / name}", Tokens(77)) for name in "abc")
    assert first == second != third


def test_sampled_sha256_tells_large_files_apart(tmp_path: Path):
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes(1 << 20))
    before = sampled_sha256(large)
    for place in (0, (1 << 20) - 1):
        content = bytearray(1 << 20)
        content[place] = 1
        large.write_bytes(content)
        assert sampled_sha256(large) != before
    large.write_bytes(bytes((1 << 20) + 1))
    assert sampled_sha256(large) != before
    small.write_bytes(b"ab")
    known = sampled_sha256(small)
    small.write_bytes(b"ac")
    assert sampled_sha256(small) != known
