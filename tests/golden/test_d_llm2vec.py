"""Golden case d: texts to pooled states of the language model, as the reference does it, mistakes included."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from llm2clip.encoders.language import load_language_model
from llm2clip.encoders.llama import BidirectionalLlama
from llm2clip.encoders.text import LLAMA3_FOOTER, LLAMA3_HEADER, TextReader, TextRules

SETTINGS = {
    "card_8b": TextRules(
        header=LLAMA3_HEADER, footer=LLAMA3_FOOTER, max_tokens=512, doc_max_length=512, parity="upstream"
    ),
    "card_1b": TextRules(
        header=LLAMA3_HEADER, footer=LLAMA3_FOOTER, max_tokens=512, doc_max_length=400, parity="upstream"
    ),
    "no_wrapper": TextRules(max_tokens=512, doc_max_length=512, parity="upstream"),
}


@cache
def load_model(folder: Path) -> BidirectionalLlama:
    return load_language_model(folder)


def without_rope_scaling(model: BidirectionalLlama) -> BidirectionalLlama:
    twin = BidirectionalLlama(replace(model.config, rope_scaling=None))
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.eval()


class Setting:
    """One model under one setting: reader, model and what was recorded."""

    def __init__(self, golden, name: str) -> None:
        self.golden, self.name = golden, name
        self.case = golden.case(f"d_llm2vec/{name}")
        model_folder = self.case.folder.parent / "model"
        self.texts = json.loads((self.case.folder.parent / "texts.json").read_text(encoding="utf-8"))
        self.records = self.case.json("tokens.json")
        self.expected = self.case.tensors("expected.safetensors")
        options = json.loads((model_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
        pad_id = tokenizer.token_to_id(options.get("pad_token") or options["eos_token"])
        self.reader = TextReader(tokenizer, SETTINGS[self.case.folder.name], pad_id=pad_id)
        self.model = load_model(model_folder)
        self.captions = [item["text"] for item in self.texts]
        assert [item["id"] for item in self.texts] == [record["id"] for record in self.records]

    @torch.no_grad()
    def embed(self, texts, *, model=None, causal=False):
        ids, attention, embed = self.reader.batch(texts)
        hidden = (model or self.model)(ids, attention, causal=causal)
        return self.reader.pool(hidden, embed)

    def alone(self, **options):
        return torch.cat([self.embed([text], **options) for text in self.captions])

    @property
    def pooled(self):
        """Texts with something to pool: the others' result depends on the batch."""
        return torch.tensor([record["n_pooled"] > 0 for record in self.records])

    def check(self, key, got, expected, **options):
        self.case.check(f"{self.name} {key}", got, expected, **options)


@pytest.fixture
def setting(golden, setting_name) -> Setting:
    golden.folder("d_llm2vec")
    if setting_name.rpartition("/")[2] not in SETTINGS:
        golden.note(f"{setting_name}: not covered yet, no such setting in the runner")
        pytest.skip(f"no rules for setting {setting_name}")
    return Setting(golden, setting_name)


def test_ids_and_masks_of_each_text(setting):
    for text, record in zip(setting.captions, setting.records, strict=True):
        name = f"{setting.name} {record['id']}"
        ids, attention, embed = setting.reader.batch([text])
        setting.case.exact(f"{name} prepared", setting.reader.prepared(text), record["prepared"])
        setting.case.exact(f"{name} input_ids", ids[0].tolist(), record["input_ids"])
        setting.case.exact(f"{name} embed_mask", embed[0].tolist(), record["embed_mask"])
        setting.case.exact(f"{name} n_tokens", ids.shape[1], record["n_tokens"])
        setting.case.exact(f"{name} n_pooled", int(embed.sum()), record["n_pooled"])
        assert record["attention_mask_all_ones"]
        assert bool((attention == 1).all())


def test_ids_and_masks_of_the_whole_batch(setting):
    batch = setting.reader.batch(setting.captions)
    for key, got in zip(("input_ids", "attention_mask", "embed_mask"), batch, strict=True):
        setting.case.exact(f"{setting.name} batch.{key}", got, setting.expected[f"batch.{key}"].long())


def test_embeddings_of_texts_alone(setting):
    got, expected = setting.alone(), setting.expected
    setting.check("embeddings_alone", got, expected["embeddings_alone"])
    setting.check("embeddings_alone_fp64", got, expected["embeddings_alone_fp64"])
    if "embeddings_normalized" in expected:
        normalized = torch.nn.functional.normalize(got, dim=1)
        setting.check("embeddings_normalized", normalized, expected["embeddings_normalized"])


def test_embeddings_of_batches(setting):
    pooled, expected = setting.pooled, setting.expected
    got = setting.embed(setting.captions)
    setting.check("embeddings_batch_all", got[pooled], expected["embeddings_batch_all"][pooled])
    order = sorted(range(len(setting.captions)), key=lambda number: -len(setting.captions[number]))
    got = torch.empty_like(got)
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        got[chosen] = setting.embed([setting.captions[number] for number in chosen])
    setting.check("embeddings_batch32", got[pooled], expected["embeddings_batch32"][pooled])


@torch.no_grad()
def test_a_row_that_pools_nothing_is_the_mean_over_the_padded_row(setting):
    nothing = ~setting.pooled
    ids, attention, embed = setting.reader.batch(setting.captions)
    assert ((embed.sum(dim=1) == 0) == nothing).all()
    if not nothing.any():
        pytest.skip("every text of this setting pools something")
    hidden = setting.model(ids[nothing], attention[nothing])
    got = setting.reader.pool(hidden, embed[nothing])
    setting.check("n_pooled = 0", got, hidden.mean(dim=1))
    assert (got - setting.expected["embeddings_alone"][nothing]).abs().max() > 1e-3


@torch.no_grad()
def test_hidden_states(setting):
    keys = [key for key in setting.expected if key.startswith("debug.")]
    assert keys
    texts = {item["id"]: item["text"] for item in setting.texts}
    for name in {key.split(".")[1] for key in keys}:
        states: list[torch.Tensor] = []
        ids, attention, _ = setting.reader.batch([texts[name]])
        setting.model(ids, attention, hidden_states=states)
        recorded = [key for key in keys if key.split(".")[1] == name]
        assert len(states) == len(recorded)
        for number, state in enumerate(states):
            key = f"debug.{name}.hidden_states.{number}"
            setting.check(key, state, setting.expected[key])


def test_causal_attention_is_told_apart(setting):
    wrong = setting.expected["wrong/causal_embeddings_alone"]
    setting.check("wrong/causal_embeddings_alone", setting.alone(causal=True), wrong)
    several = torch.tensor([record["n_tokens"] > 1 for record in setting.records])
    distance = (setting.alone() - wrong).abs().amax(dim=1)
    assert (distance[several] > 1e-3).all()


def test_ignoring_rope_scaling_is_told_apart(setting):
    if not (setting.case.folder / "wrong_no_rope_scaling.safetensors").is_file():
        pytest.skip("recorded for one setting of a model with rope scaling only")
    assert setting.model.config.rope_scaling is not None
    wrong = setting.case.tensors("wrong_no_rope_scaling.safetensors")["embeddings_alone"]
    plain = setting.alone(model=without_rope_scaling(setting.model))
    setting.check("wrong_no_rope_scaling", plain[setting.pooled], wrong[setting.pooled])
    long = torch.tensor([record["n_tokens"] > 20 for record in setting.records])
    distance = (setting.alone() - wrong).abs().amax(dim=1)
    assert (distance[long] > 1e-3).float().mean() > 0.9
