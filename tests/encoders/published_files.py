"""Tiny models in the layouts LLM2CLIP was published in, put where published ones would be, with a catalogue of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llm2clip.encoders.catalog import entries as catalogue
from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.text.llm_checkpoint import open_language

from .checkpoints import DIM, SIGLIP_SETTINGS, eva02, filled, openai, siglip

GOLDEN = Path(__file__).parent.parent / "golden" / "data" / "d_llm2vec"
LLAMAS = {"tiny-8b-cc": GOLDEN / "llama8b_like", "tiny-1b-cc": GOLDEN / "llama1b_like"}
"""Language models with recorded states; the folder ``model`` below has the published files."""
PREFIXES = {
    "openai": "text_adapter.adaptor.",
    "eva02": "text.text_adaptor.",
    "siglip2": "text.text_proj.text_adaptor.",
}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": MODULES}


def tower_file(layout: str, *, width: int, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a published vision file whose adapter reads states of ``width``."""
    make = {"openai": openai, "eva02": eva02, "siglip2": siglip}[layout]
    prefix, weights = PREFIXES[layout], make(seed=seed)
    adapter = filled(TextAdapter(width, DIM))
    kept = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    stored = torch.float16 if layout == "eva02" else torch.float32
    return kept | {
        prefix + name.removeprefix("adaptor."): value.to(stored) for name, value in adapter.items()
    }


def lora_file(width: int, inner: int) -> dict[str, Tensor]:
    """A low-rank update of two matrices of a tiny language model."""
    torch.manual_seed(5)
    place = "base_model.model.layers.1.mlp."
    return {
        f"{place}up_proj.lora_A.weight": torch.randn(2, width) * 0.2,
        f"{place}up_proj.lora_B.weight": torch.randn(inner, 2) * 0.2,
        f"{place}down_proj.lora_A.weight": torch.randn(2, inner) * 0.2,
        f"{place}down_proj.lora_B.weight": torch.randn(width, 2) * 0.2,
    }


ROWS = {
    "tiny-openai": ("openai", "tiny-8b-cc", "model.safetensors", "clip"),
    "tiny-eva": ("eva02", "tiny-1b-cc", "tiny.pt", "eva"),
    "tiny-siglip": ("siglip2", "tiny-lora-cc", "model.safetensors", "eva"),
}
"""Name -> layout, language model, file of weights, preprocessing."""


def _language_table(name: str, folder: Path, *, repository: str, limit: int, lora: bool = False) -> str:
    config = open_language(folder).config
    sizes = {
        key: getattr(config, key)
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        )
    }
    files = sorted(path.name for path in folder.iterdir() if path.name != "special_tokens_map.json")
    lines = [
        "[[language_model]]",
        f'name = "{name}"',
        f'repository = "{repository}"',
        f"files = {json.dumps(files)}",
        "download_bytes = 100000",
        f"parameters = {open_language(folder).parameters}",
        'stored = "bfloat16"',
        f"doc_max_length = {limit}",
        "[language_model.shape]",
        *(f"{key} = {value}" for key, value in sizes.items()),
    ]
    if lora:
        lines += ["[language_model.lora]", 'repository = "ms/tiny-siglip"', 'subfolder = "lora"']
    return "\n".join(lines) + "\n"


def _encoder_table(name: str, parameters: int, *, limit: int) -> str:
    layout, language, weights, preprocessing = ROWS[name]
    lines = [
        "[[encoder]]",
        f'name = "{name}"',
        'family = "llm2clip"',
        f'repository = "ms/{name}"',
        'revision = "0123456789012345678901234567890123456789"',
        f'files = ["{weights}"]',
        f'weights = "{weights}"',
        "download_bytes = 200000",
        f"parameters = {parameters}",
        f'layout = "{layout}"',
        f"dim = {DIM}",
        "image_size = 28",
        f'preprocessing = "{preprocessing}"',
        f'language_model = "{language}"',
        f"max_text_tokens = {limit}",
        'languages = ["en"]',
        'licence = "MIT"',
        'traps = ["it is tiny"]',
    ]
    if layout == "siglip2":
        lines += ["normalize_input = false", "half_features = true"]
    return "\n".join(lines) + "\n"


def _trained(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() for name, value in tensors.items() if "rope" not in name)


def publish(home: Path, table: Path) -> None:
    """Write all tiny models below ``home`` as if they had been put there by hand, and a catalogue of them."""
    places = {"tiny-8b-cc": "ms/tiny-8b", "tiny-1b-cc": "ms/tiny-1b", "tiny-lora-cc": "meta-llama/tiny-31-8b"}
    text = "format = 1\n"
    for name, repository in places.items():
        source = LLAMAS.get(name, LLAMAS["tiny-8b-cc"]) / "model"
        shutil.copytree(source, home / repository.split("/")[1])
        limit = 400 if name == "tiny-1b-cc" else 512
        text += _language_table(name, source, repository=repository, limit=limit, lora=name == "tiny-lora-cc")
    for name, (layout, language, weights, _) in ROWS.items():
        folder = home / name
        folder.mkdir()
        width = 48 if language == "tiny-1b-cc" else 64
        tensors = tower_file(layout, width=width)
        if weights.endswith(".pt"):
            torch.save(tensors, folder / weights)
        else:
            save_file(tensors, folder / weights)
        if layout == "siglip2":
            (folder / "config.json").write_text(json.dumps(SIGLIP_SETTINGS))
            lora = folder / "lora"
            lora.mkdir()
            save_file(lora_file(64, 160), lora / "adapter_model.safetensors")
            (lora / "adapter_config.json").write_text(json.dumps(LORA))
        text += _encoder_table(name, _trained(tensors), limit=401 if width == 48 else 507)
    table.write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder ``models`` and file ``catalogue.toml``. Not to be written to."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "models").mkdir()
    publish(folder / "models", folder / "catalogue.toml")
    return folder


@pytest.fixture
def models(tiny_files: Path, data_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for models put there by hand, with all of them, and the catalogue of them in place of ours."""
    shutil.copytree(tiny_files / "models", data_home / "models")
    monkeypatch.setattr(catalogue, "_TABLES", (tiny_files / "catalogue.toml",))
    for cached in (catalogue.encoder_entries, catalogue.language_models):
        cached.cache_clear()
    yield data_home / "models"
    monkeypatch.undo()
    for cached in (catalogue.encoder_entries, catalogue.language_models):
        cached.cache_clear()
