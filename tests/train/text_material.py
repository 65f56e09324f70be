"""Tiny text models in transformers' layout, and captions to train them on."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.language_config import language_config

NOUNS = ("dog", "cat", "bird", "car", "boat", "tree", "child", "horse", "ball", "house", "river", "train")
VERBS = ("runs", "sleeps", "jumps", "waits", "plays", "stands", "turns", "falls")
WORDS = ("<s>", "</s>", "_", "[UNK]", "a", "the", "one", "very", "in", "near", "small", "old", "photo", "of")
LLAMA = {
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 1000.0,
    "tie_word_embeddings": True,
}


BERT = {
    "model_type": "bert",
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "hidden_act": "gelu",
}


def word_tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate((*WORDS, *NOUNS, *VERBS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def llama_folder(folder: Path, *, seed: int = 0) -> Path:
    """A random Llama of two layers that reads words."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = BidirectionalLlama(language_config(LLAMA))
    weights = {name: torch.randn(tensor.shape) * 0.3 for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    word_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def bert_folder(folder: Path, *, seed: int = 0) -> Path:
    """A random BERT of two layers with the name of an E5, so that "query: " stands before texts."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = BertEncoder(language_config(BERT))
    weights = {name: torch.randn(tensor.shape) * 0.3 for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(BERT))
    word_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def captions(count: int = 96) -> list[dict[str, object]]:
    """Rows of a .jsonl file: each "image" has two captions in "en" and two in "xx" about one noun and verb."""
    rows: list[dict[str, object]] = []
    for number in range(count):
        noun, verb = NOUNS[number % 12], VERBS[number // 12 % 8]
        english = [f"a {noun} {verb}", f"the small {noun} {verb} near the house"]
        other = [f"one very old {noun} {verb}", f"photo of {noun} {verb}"]
        rows.append({"id": f"image{number}", "captions": {"en": english, "xx": other}})
    return rows


def caption_file(path: Path, count: int = 96) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in captions(count)), encoding="utf-8")
    return path
