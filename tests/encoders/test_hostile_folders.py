"""Folders of ours that somebody spoilt: each ends in one line that says which file and tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from llm2clip.encoders import load_encoder

from .test_hostile_weights import CONFIG, Mutation, bytes_with, copied, refused, write


def config_with(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / CONFIG).read_text())
        for place, value in changes.items():
            *path, last = place.split("__")
            target = data
            for key in path:
                target = target[key]
            target[last] = value
        (folder / CONFIG).write_text(json.dumps(data))

    return apply


def other_tokenizer(words: list[str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=words[0]))
        tokenizer.save(str(folder / "tokenizer.json"))

    return apply


TOKENIZER = "tokenizer.json"
FOLDERS = [
    Mutation(
        "a tokenizer with more tokens",
        "ours",
        other_tokenizer([f"word{n}" for n in range(300)]),
        file=TOKENIZER,
    ),
    Mutation(
        "a tokenizer without the end token",
        "ours",
        other_tokenizer(["a", "b", "?"]),
        "<|eot_id|>",
        file=CONFIG,
    ),
    Mutation("an empty tokenizer", "ours", lambda folder: write(folder / TOKENIZER, b"{}"), file=TOKENIZER),
    Mutation(
        "a tokenizer cut short",
        "ours",
        bytes_with(lambda data: data[: len(data) // 2], TOKENIZER),
        file=TOKENIZER,
    ),
    Mutation(
        "wider than its weights", "ours", config_with(text__intermediate_size=41), "mlp.gate_proj.weight"
    ),
    Mutation(
        "deeper than its weights", "ours", config_with(text__num_hidden_layers=3), "language_model.layers.2"
    ),
    Mutation(
        "shallower than its weights",
        "ours",
        config_with(text__num_hidden_layers=1),
        "language_model.layers.1",
    ),
    Mutation("more tokens than its table", "ours", config_with(text__vocab_size=300), "embed_tokens.weight"),
    Mutation("another dtype than its weights", "ours", config_with(dtype="float16"), "vision."),
    Mutation("adapter of another depth", "ours", config_with(adapter__blocks=4), "text_adapter.adaptor."),
    Mutation(
        "adapter of another width", "ours", config_with(adapter__width=25), "adapter.width", file=CONFIG
    ),
    Mutation(
        "image of another size",
        "ours",
        config_with(preprocessing__size=33),
        "preprocessing.size",
        file=CONFIG,
    ),
    Mutation(
        "a family that runs code", "ours", config_with(auto_map={"AutoModel": "x.Y"}), "auto_map", file=CONFIG
    ),
]


@pytest.mark.parametrize("mutation", FOLDERS, ids=lambda mutation: mutation.name)
def test_load_folder_refuses_damaged_folder(mutation: Mutation, tiny_folder: Path, tmp_path: Path):
    folder = copied(tiny_folder, tmp_path / "model")
    mutation.apply(folder)
    refused(lambda: load_encoder(folder, device="cpu").load_all(), mutation, folder)
