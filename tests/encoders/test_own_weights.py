"""Towers and language models of one's own: what they are called, whose rules they follow, and where they may lie."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llm2clip.encoders import Encoder, ModelError, PublishedEncoder, load_encoder
from llm2clip.encoders.catalog import entries as catalogue

from .published_files import tower_file

TEXTS = ["a red bicycle in the rain", "两只猫在睡觉", "Hund"]


def but_for_its_name(encoder: Encoder) -> dict[str, str | int]:
    return {key: value for key, value in encoder.info.identity().items() if key != "name"}


def test_load_encoder_recognises_published_files_in_local_folders(models: Path, tmp_path: Path):
    named = load_encoder("tiny-openai")
    moved = shutil.copytree(models / "tiny-openai", tmp_path / "anything")
    for given in (moved, str(moved), moved / "model.safetensors"):
        encoder = load_encoder(given)
        assert isinstance(encoder, PublishedEncoder)
        assert but_for_its_name(encoder) == but_for_its_name(named)
    file = shutil.copy(models / "tiny-eva" / "tiny.pt", tmp_path / "mine.pt")
    assert but_for_its_name(load_encoder(file)) == but_for_its_name(load_encoder("tiny-eva"))
    assert load_encoder("ms/tiny-eva").info.name == load_encoder("TINY-EVA").info.name == "tiny-eva"


def test_load_encoder_does_not_take_own_tower_for_published(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = tmp_path / "trained-by-me"
    folder.mkdir()
    save_file(tower_file("openai", width=64, seed=9), folder / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="llm2clip.encoders"):
        encoder = load_encoder(folder, language_model="tiny-lora-cc")
    info = encoder.info
    assert (info.name, info.licence, info.languages) == ("trained-by-me", "unknown", ())
    assert info.note == "of your own, read by the rules of tiny-openai, whose shape it has"
    assert info.note in encoder.found
    assert caplog.text == ""  # nobody knows what it was trained with
    assert load_encoder(folder / "model.safetensors").info.name == "model"
    # A clone of the repository is called like it.
    clone = load_encoder(shutil.copytree(models / "tiny-openai", tmp_path / "clones" / "tiny-openai"))
    assert (clone.info.name, clone.info.licence) == ("tiny-openai", "MIT")


def test_load_encoder_trusts_hash_more_than_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    published = models / "tiny-eva" / "tiny.pt"
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    rows = [
        replace(row, weights_sha256=digest) if row.name == "tiny-eva" else row
        for row in catalogue.encoder_entries()
    ]
    monkeypatch.setattr("llm2clip.encoders.vision.vision_source.encoder_entries", lambda: rows)
    assert load_encoder(shutil.copy(published, tmp_path / "a.pt")).info.name == "tiny-eva"
    other = tmp_path / "tiny-eva" / "tiny.pt"
    other.parent.mkdir()
    torch.save(tower_file("eva02", width=48, seed=5), other)
    encoder = load_encoder(other.parent)
    assert encoder.info.note == "of your own, read by the rules of tiny-eva, whose shape it has"
    assert encoder.info.licence == "unknown"


def test_load_encoder_reads_own_tower(models: Path, tmp_path: Path):
    tensors = tower_file("openai", width=64, seed=3)
    del tensors["logit_scale"]
    folder = tmp_path / "mine"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"mine reads language models of width 64, and none of the published is"
    ):
        load_encoder(folder)
    encoder = load_encoder(folder, language_model="tiny-8b-cc")
    assert (encoder.info.name, encoder.info.note) == ("mine", "openai tower of your own")
    assert encoder.encode_texts(TEXTS).shape == (3, 16)


def test_load_encoder_refuses_links_out_of_the_folder(models: Path, tmp_path: Path):
    file = shutil.copytree(models / "tiny-8b", tmp_path / "llama") / "tokenizer.json"
    file.replace(tmp_path / "tokenizer.json")
    file.symlink_to(tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match=r"llama/tokenizer\.json is a link that leads out of its folder"):
        load_encoder("tiny-openai", language_model=file.parent).encode_texts(TEXTS)
    (tmp_path / "lora").mkdir()
    other = shutil.copytree(models / "tiny-8b", tmp_path / "other")
    (other / "lora").symlink_to(tmp_path / "lora")
    with pytest.raises(ModelError, match=r"other/lora is a link that leads out of its folder"):
        load_encoder("tiny-openai", language_model=other).encode_texts(TEXTS)


def test_load_encoder_reads_folder_of_language_model(models: Path, tmp_path: Path):
    mine = load_encoder(shutil.copytree(models / "tiny-8b", tmp_path / "mine"))
    assert (mine.info.name, mine.info.licence, mine.info.languages) == ("mine", "unknown", ())
    expected = load_encoder("tiny-8b-cc").encode_texts(TEXTS)
    np.testing.assert_array_equal(mine.encode_texts(TEXTS), expected)
    with pytest.raises(ModelError, match="mine is a language model only and cannot encode images"):
        mine.encode_images([np.zeros((8, 8, 3), np.uint8)])


def test_load_encoder_reads_folder_of_pickled_tower(models: Path, tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(models / "tiny-eva" / "tiny.pt", folder / "epoch_20.pt")
    by_folder = load_encoder(folder, language_model="tiny-1b-cc")
    by_file = load_encoder(folder / "epoch_20.pt", language_model="tiny-1b-cc")
    assert (by_folder.info.name, by_file.info.name) == ("mine", "epoch_20")
    assert but_for_its_name(by_folder) == but_for_its_name(by_file)


def test_load_encoder_refuses_empty_name():
    with pytest.raises(ModelError, match=r"^unknown encoder '', and no folder of that name; known: nano, "):
        load_encoder("")


@pytest.mark.parametrize("name", ["tower.safetensors", "tower.pt"])
def test_load_encoder_explains_git_lfs_pointers(name: str, tmp_path: Path):
    file = tmp_path / name
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    with pytest.raises(
        ModelError, match=rf"{name} is a pointer of Git LFS, not the file itself; run git lfs pull"
    ):
        load_encoder(file)


def test_load_encoder_refuses_other_files(tmp_path: Path):
    (tmp_path / "it.txt").write_text("x")
    with pytest.raises(
        ModelError, match=r"it\.txt is no encoder; expected a folder, or a file \.safetensors, "
    ):
        load_encoder(tmp_path / "it.txt")
