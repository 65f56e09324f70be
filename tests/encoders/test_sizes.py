"""Configurations that lie about sizes: one of our errors, soon, and before any memory of that size is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from llm2clip.encoders import ModelError, load_encoder
from llm2clip.encoders.core.files import check_size
from llm2clip.encoders.text.llm_checkpoint import open_language

from .published_files import LLAMAS
from .test_clip import saved

__all__ = ["saved"]  # fixture

LLAMA_LIES = [
    ("num_hidden_layers", 10**6, "num_hidden_layers must be a whole number from 1 to 1,024, got 1000000"),
    ("num_hidden_layers", -1, "num_hidden_layers must be a whole number from 1 to 1,024, got -1"),
    ("hidden_size", 10**12, "hidden_size must be a whole number from 1 to "),
    ("vocab_size", 10**15, "vocab_size must be a whole number from 1 to "),
    ("intermediate_size", float("inf"), "cannot convert float infinity to integer"),
    ("num_attention_heads", 0, "division"),
    ("num_attention_heads", [6], "not 'list'"),
    ("head_dim", -8, "head_dim must be a whole number from 1 to "),
    ("rms_norm_eps", float("nan"), "rms_norm_eps must be between 0 and 1"),
    ("rope_theta", -1, "rope_theta positive, got 1e-05 and -1.0"),
    ("rope_scaling", [1], "is no language model that can be read: "),
    (
        "rope_scaling",
        {
            "rope_type": "llama3",
            "factor": 0,
            "low_freq_factor": 1,
            "high_freq_factor": 4,
            "original_max_position_embeddings": 8192,
        },
        "must be positive, the second below the third, got ",
    ),
]
TOWER_LIES = [
    ("num_hidden_layers", 10**6, "num_hidden_layers must be a whole number from 1 to 1,024, got 1000000"),
    ("hidden_size", 10**12, "hidden_size must be a whole number from 1 to "),
    ("hidden_size", 0, "hidden_size must be a whole number from 1 to "),
    ("hidden_size", 10**7, "no model of the sizes it gives can be made: "),
    ("intermediate_size", 10**10, "intermediate_size must be a whole number from 1 to "),
    ("num_attention_heads", 0, "is no configuration of CLIP: "),
    ("hidden_act", "__import__", "hidden_act must be one that transformers has, got '__import__'"),
    ("layer_norm_eps", -1.0, "layer_norm_eps must be between 0 and 1, got -1.0"),
    ("layer_norm_eps", float("nan"), "layer_norm_eps must be between 0 and 1, got nan"),
]


@pytest.mark.parametrize(
    ("value", "most"), [(0, 9), (-3, 9), (10, 9), (2.0, 9), (True, 9), ("2", 9), (None, 9)]
)
def test_check_size_refuses_what_is_no_size(value: object, most: int):
    check_size("width", 9, most=9)
    with pytest.raises(ValueError, match=f"width must be a whole number from 1 to 9, got {value}"):
        check_size("width", value, most=most)


@pytest.mark.parametrize(("key", "value", "message"), LLAMA_LIES)
def test_open_language_refuses_impossible_sizes(key: str, value: object, message: str, tmp_path: Path):
    folder = Path(shutil.copytree(LLAMAS["tiny-1b-cc"] / "model", tmp_path / "llama"))
    config = json.loads((folder / "config.json").read_text())
    if key == "num_attention_heads":
        config.pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError) as caught:
        open_language(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'} is no language model that can be read: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
@pytest.mark.parametrize(("key", "value", "message"), TOWER_LIES)
def test_load_encoder_refuses_impossible_sizes(
    section: str, key: str, value: object, message: str, saved: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(saved, tmp_path / "clip"))
    config = json.loads((folder / "config.json").read_text())
    config[section][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(folder)
    texts = section == "text_config"
    with pytest.raises(ModelError) as caught:
        encoder.encode_texts(["cat"]) if texts else encoder.encode_images([Image.new("RGB", (28, 28))])
    assert str(folder / "config.json") in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [10**12, 0, -1, 2.5])
def test_load_encoder_refuses_impossible_dim(value: object, saved: Path, tmp_path: Path):
    folder = Path(shutil.copytree(saved, tmp_path / "clip"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"projection_dim": value}))
    with pytest.raises(ModelError, match=r"config\.json is no configuration of CLIP: .*projection_dim"):
        load_encoder(folder).encode_texts(["cat"])
