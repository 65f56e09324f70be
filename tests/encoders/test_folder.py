"""The folder format: byte-exact round trips, and every way in which a folder can be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from llm2clip.encoders import ModelError, load_encoder, save_encoder
from llm2clip.encoders.llm2clip.folder_config import read_config
from llm2clip.encoders.llm2clip.save_load import save_llm2clip
from llm2clip.encoders.weights.safetensors_io import read_header

from .conftest import Parts

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
Q_PROJ = "language_model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    data = json.loads((folder / CONFIG).read_text())
    change(data)
    (folder / CONFIG).write_text(json.dumps(data))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refused(folder: Path, message: str) -> None:
    """Loading fails with one line that has ``message`` and the folder in it."""
    with pytest.raises(ModelError, match=message) as caught:
        load_encoder(folder, device="cpu").load_all()
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


# Round trips


def test_save_llm2clip_round_trips_weights(parts: Parts, tiny_folder: Path):
    stored = load_file(tiny_folder / WEIGHTS)
    expected = {"visual_projection.weight": parts.projection.weight, "logit_scale": torch.tensor(2.5)}
    for prefix, module in (
        ("vision.", parts.vision),
        ("language_model.", parts.language_model),
        ("text_adapter.", parts.adapter),
    ):
        expected |= {prefix + name: value for name, value in module.named_parameters()}
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], value) for name, value in expected.items())
    assert read_config(tiny_folder) == parts.config


def test_write_config_round_trips_every_kind_of_value(parts: Parts, tmp_path: Path):
    from llm2clip.encoders.layers.configs import RopeScaling
    from llm2clip.encoders.llm2clip.folder_config import write_config

    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    config = dataclasses.replace(
        parts.config,
        note="naïve “quotes” 好",
        text=dataclasses.replace(parts.config.text, rope_scaling=scaling),
        text_rules=dataclasses.replace(parts.config.text_rules, doc_max_length=9),
    )
    write_config(tmp_path, config)
    for name in (WEIGHTS, TOKENIZER):
        (tmp_path / name).touch()
    assert read_config(tmp_path) == config


def test_save_encoder_copies_the_same_bytes(folder: Path, tmp_path: Path):
    (folder / "README.md").write_text("about it\n")
    encoder = load_encoder(folder, device="cpu")
    save_encoder(encoder, tmp_path / "a" / "b")
    for name in (WEIGHTS, CONFIG, TOKENIZER, "README.md"):
        assert (tmp_path / "a" / "b" / name).read_bytes() == (folder / name).read_bytes()
    again = load_encoder(tmp_path / "a" / "b", device="cpu")
    assert again.info == encoder.info
    assert np.array_equal(again.encode_texts(["a cat"]), encoder.encode_texts(["a cat"]))
    with pytest.raises(ValueError, match="is the folder this encoder was loaded from"):
        save_encoder(encoder, folder)


def test_save_llm2clip_is_deterministic(parts: Parts, tmp_path: Path):
    first, second = parts.save(tmp_path / "1"), parts.save(tmp_path / "2")
    for name in (WEIGHTS, CONFIG, TOKENIZER):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert sorted(path.name for path in first.iterdir()) == [CONFIG, WEIGHTS, TOKENIZER]


def test_save_llm2clip_replaces_a_folder(parts: Parts, folder: Path):
    parts.save(folder, dtype=torch.float16)
    assert read_config(folder).dtype == "float16"
    dtypes = {name: spec.dtype for name, spec in read_header(folder / WEIGHTS).items()}
    assert dtypes.pop("logit_scale") == "F32"
    assert set(dtypes.values()) == {"F16"}


def test_save_llm2clip_takes_a_tokenizer_file(parts: Parts, tmp_path: Path):
    source = tmp_path / "tok.json"
    source.write_text(parts.tokenizer.to_str())
    for number, given in enumerate((source, str(source))):
        save_llm2clip(
            tmp_path / str(number),
            config=parts.config,
            vision=parts.vision,
            projection=parts.projection,
            language_model=parts.language_model,
            adapter=parts.adapter,
            logit_scale=torch.tensor([1.5]),
            tokenizer_json=given,
        )
        assert (tmp_path / str(number) / TOKENIZER).read_bytes() == source.read_bytes()


def test_load_folder_info_describes_the_file(parts: Parts, folder: Path):
    encoder = load_encoder(folder, device="cpu")
    modules = (parts.vision, parts.projection, parts.language_model, parts.adapter)
    info = encoder.info
    assert info.parameters == 1 + sum(p.numel() for module in modules for p in module.parameters())
    assert info.weights_sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert (info.name, info.family, info.dim, info.image_size) == ("tiny", "llm2clip", 20, 32)
    assert info.preprocessing == "rgb-on-white/pad-square/bicubic-32/mean.5std.5"
    assert info.languages == ("en", "zh")
    assert load_file(folder / WEIGHTS)["logit_scale"] == 2.5


# Tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(Q_PROJ), f"does not fit its config.json: missing tensors: {re.escape(Q_PROJ)}$"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(2)}), r"unexpected tensors: lm_head\.weight$"),
        (
            lambda w: w.update({Q_PROJ: torch.zeros(24, 25)}),
            rf"wrong tensors: {re.escape(Q_PROJ)} is F32 \[24, 25\], expected F32 \[24, 24\]$",
        ),
        (
            lambda w: w.update({Q_PROJ: w[Q_PROJ].half()}),
            rf"{re.escape(Q_PROJ)} is F16 \[24, 24\], expected F32 \[24, 24\]$",
        ),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_load_folder_names_wrong_tensors(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
):
    edit_weights(folder, change)
    refused(folder, message)


def test_load_folder_counts_many_wrong_tensors(folder: Path):
    edit_weights(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith("vision.")])
    refused(folder, r"missing tensors: (vision\.\S+, ){4}vision\.\S+ and \d+ more$")


def test_load_folder_refuses_values_that_are_not_finite(folder: Path):
    edit_weights(folder, lambda tensors: tensors[Q_PROJ].fill_(float("nan")))
    encoder = load_encoder(folder, device="cpu")
    with pytest.raises(ModelError, match=f"not finite in: {re.escape(Q_PROJ)}"):
        encoder.encode_texts(["a"])


# Configuration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "other"},
            r"expected format 'llm2clip-encoder', got 'other'; it is another kind of folder",
        ),
        ({"version": 7}, r"format version 7, this release reads 1 and 2; use the release that wrote it"),
        ({"version": None}, r"format version None"),
        ({"family": "clip"}, r"expected family 'llm2clip', got 'clip'"),
        ({"dtype": "float64"}, r"dtype: expected one of \['float16', 'bfloat16', 'float32', 'int8'\], got "),
        ({"languages": "en"}, r"languages: expected a list, got str"),
        ({"name": 3}, r"name: expected str, got int 3"),
        ({"auto_map": {"AutoModel": "x.Y"}}, r"unknown keys: \['auto_map'\]"),
    ],
)
def test_read_config_names_wrong_value(folder: Path, change: dict, message: str):
    edit_config(folder, lambda data: data.update(change))
    refused(folder, message)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "vision",
            {"trunk": {"variant": 0, "image_size": 32, "batch_norm": True}},
            "is for training; fold it",
        ),
        (
            "vision",
            {"trunk": {"variant": 0, "image_sise": 32}},
            "trunk: unknown keys: .*did you mean 'image_size'",
        ),
        (
            "image_head",
            {"kind": "none"},
            "without an image head the vectors have the tower's width 1280, but adapt",
        ),
        ("text", {"vocab_size": 1 << 24}, "but text has a matrix of 402,653,184 numbers"),
        ("text", {"num_hidden_layers": 1000}, "but there are 1,002 blocks"),
        ("adapter", {"dim": 1 << 40}, "adapter has a matrix of"),
        ("image_head", {"blocks": 65}, "image_head: blocks must be from 0 to 64"),
        ("adapter", {"expansion": 1 << 40}, "adapter: blocks must be from 0 to 64 and expansion from 1"),
        ("preprocessing", {"size": 40}, "preprocessing.size is 40, but vision.image_size is 32"),
        ("adapter", {"width": 25}, "adapter.width is 25, but text.hidden_size is 24"),
        ("text", {"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads"),
        ("text_rules", {"max_tokens": 0}, "must be positive"),
        ("text_rules", {"parity": "none"}, "expected one of"),
        ("preprocessing", {"mode": "stretch"}, "expected one of"),
        (
            "vision",
            {"sharpnes": 0.5},
            r"vision: unknown keys: \['sharpnes'\]; did you mean 'sharpness'\?",
        ),
    ],
)
def test_read_config_refuses_values_that_do_not_fit(folder: Path, section: str, change: dict, message: str):
    edit_config(folder, lambda data: data[section].update(change))
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1 << 20}, r"vision\.depth must be a whole number from 1 to 1,024"),
        ({"width": -1}, r"vision\.width must be a whole number"),
        ({"hidden": 1 << 24}, "vision has a matrix of"),
        ({"heads": 3}, "width must be a multiple of heads"),
        ({"patch_size": 0}, r"vision\.patch_size must be a whole number"),
        ({"activation": "x"}, "activation one of"),
        ({"layout": "other"}, r"layout: expected one of"),
        ({"width": 40, "heads": 2}, "missing tensors: vision"),
    ],
)
def test_folder_of_a_published_tower_is_not_trusted(folder: Path, change: dict, message: str):
    shape = {"layout": "openai", "image_size": 32, "patch_size": 16, "width": 1280, "depth": 1, "heads": 20}
    sizes = shape | {"hidden": 64, "dim": 20} | change
    edit_config(folder, lambda data: data.update(vision=sizes))
    edit_weights(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith("vision.")])
    with pytest.raises(ModelError, match=message) as caught:
        load_encoder(folder, device="cpu").encode_images([Image.new("RGB", (9, 9))])
    assert "\n" not in str(caught.value)


def test_load_folder_refuses_rules_without_room(folder: Path):
    edit_config(folder, lambda data: data["text_rules"].update(max_tokens=2))
    encoder = load_encoder(folder, device="cpu")
    with pytest.raises(ModelError, match=r"does not fit the rules of tiny: max_tokens 2 leaves no room"):
        encoder.encode_texts(["a"])


@pytest.mark.parametrize("data", [b"", b"{", b"[]", "\ufeff".encode(), b"\xff\xfe\x00"])
def test_read_config_refuses_invalid_json(folder: Path, data: bytes):
    (folder / CONFIG).write_bytes(data)
    refused(folder, "config.json( is not valid JSON|: expected an object, got list)")


@pytest.mark.parametrize(
    ("section", "change", "tensor"),
    [
        ("text", {"intermediate_size": 41}, r"mlp\.gate_proj\.weight"),
        ("text", {"num_hidden_layers": 3}, r"language_model\.layers\.2"),
        ("text", {"num_hidden_layers": 1}, r"language_model\.layers\.1"),
        ("text", {"vocab_size": 300}, r"embed_tokens\.weight"),
        ("adapter", {"blocks": 4}, r"text_adapter\.adaptor\."),
        (None, {"dtype": "float16"}, r"vision\."),
    ],
)
def test_load_folder_refuses_sizes_of_other_weights(
    folder: Path, section: str | None, change: dict, tensor: str
):
    edit_config(folder, lambda data: (data[section] if section else data).update(change))
    refused(folder, rf"model\.safetensors does not fit its config\.json: .*{tensor}")


# Files


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, TOKENIZER])
def test_read_config_names_missing_file(folder: Path, name: str):
    (folder / name).unlink()
    refused(folder, f"is not an encoder folder: it has no {re.escape(name)} ")


def test_read_config_refuses_empty_folder(tmp_path: Path):
    refused(tmp_path, "it has no config.json, model.safetensors, tokenizer.json ")


def words(*words: str) -> str:
    return Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=words[0])).to_str()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"tokenizer\.json is not a tokenizer file: "),
        ('{"version": "1.0", "trunc', r"tokenizer\.json is not a tokenizer file: "),
        (words("a", "b", "?"), r"does not fit the rules of tiny: the tokenizer has no token '<\|eot_id\|>'"),
        (words(*map(str, range(260))), r"has 260 tokens, but .*config\.json says vocab_size is 258"),
    ],
    ids=["empty", "cut short", "no end token", "more tokens"],
)
def test_load_folder_refuses_other_tokenizers(folder: Path, text: str, message: str):
    (folder / TOKENIZER).write_text(text)
    with pytest.raises(ModelError, match=message):
        load_encoder(folder, device="cpu").encode_texts(["a"])


# Saving


def test_save_llm2clip_refuses_parts_that_do_not_fit(parts: Parts, tmp_path: Path):
    wrong = dataclasses.replace(parts, projection=nn.Linear(16, 20, bias=True))
    with pytest.raises(ModelError, match=r"unexpected tensors: visual_projection\.bias"):
        wrong.save(tmp_path / "x")


def test_save_llm2clip_refuses_float16_overflow(parts: Parts, tmp_path: Path):
    large = nn.Linear(1280, 20, bias=False)
    large.weight.data.fill_(1e5)
    with pytest.raises(ModelError, match=r"not finite in: visual_projection\.weight"):
        dataclasses.replace(parts, projection=large).save(tmp_path / "x", dtype=torch.float16)


def test_save_llm2clip_failure_leaves_the_folder_unchanged(parts: Parts, folder: Path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ModelError):
        dataclasses.replace(parts, projection=nn.Linear(1280, 21, bias=False)).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_save_llm2clip_refuses_other_dtypes(parts: Parts, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"stored as float16 or bfloat16 or float32 or int8, got torch\.float64"
    ):
        parts.save(tmp_path / "x", dtype=torch.float64)
