"""Published language models at full size, without their weights: names, shapes and totals against transformers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from llm2clip.encoders.catalog.entries import language_models
from llm2clip.encoders.layers.configs import LlamaConfig
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.llm_checkpoint import open_language

from .checkpoints import BYTES, hollow

ROWS = {row.name: row for row in language_models()}
WHOLE = {"llama-3-8b-cc": 7_504_924_672, "llama-3.1-8b-cc": 8_030_261_248, "llama-3.2-1b-cc": 1_235_814_400}
"""Numbers in the published files: the base of a low-rank update has its language-model head as well."""
CODES = {"float32": "F32", "bfloat16": "BF16"}


def theirs(name: str, *, head: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of transformers' own model of that shape."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM, LlamaModel

    config = TheirConfig(**asdict(ROWS[name].shape), tie_word_embeddings=False)
    with torch.device("meta"):
        model = (LlamaForCausalLM if head else LlamaModel)(config)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ROWS)
def test_bidirectional_llama_has_the_tensors_of_transformers(name: str):
    row = ROWS[name]
    with torch.device("meta"):
        ours = BidirectionalLlama(LlamaConfig(**asdict(row.shape))).state_dict()
    expected = theirs(name, head=False)
    assert {key: tuple(value.shape) for key, value in ours.items()} == expected
    assert (
        sum(torch.Size(shape).numel() for shape in expected.values())
        == row.parameters
        == row.shape.parameters
    )


@pytest.mark.parametrize("name", ROWS)
def test_open_language_reads_file_of_published_size(tmp_path: Path, name: str):
    row = ROWS[name]
    shapes = theirs(name, head=row.lora is not None)
    hollow(shapes, CODES[row.stored], tmp_path / "model.safetensors")
    settings = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0} | asdict(row.shape)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    plan = open_language(tmp_path)
    assert (plan.parameters, plan.stored) == (row.parameters, row.stored)
    total = WHOLE[name] * BYTES[CODES[row.stored]]
    assert row.download_bytes == total
    assert 0 < (tmp_path / "model.safetensors").stat().st_size - total < 100_000
