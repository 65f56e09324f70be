"""Golden case d: texts to pooled states of the language model, with the reference's mistakes."""

import json
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.caption_tokenizer import LLAMA3_FOOTER, LLAMA3_HEADER, TextReader, TextRules
from llm2clip.encoders.text.llm_checkpoint import open_language

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
    return open_language(folder).load()


def without_rope_scaling(model: BidirectionalLlama) -> BidirectionalLlama:
    twin = BidirectionalLlama(replace(model.config, rope_scaling=None))
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.eval()


class Recorded:
    """One model under one setting: reader, model and what was recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model_folder = folder.parent / "model"
        self.texts = json.loads((folder.parent / "texts.json").read_text(encoding="utf-8"))
        self.records = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        self.expected = load_file(folder / "expected.safetensors")
        options = json.loads((model_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
        pad_id = tokenizer.token_to_id(options.get("pad_token") or options["eos_token"])
        self.reader = TextReader(tokenizer, SETTINGS[folder.name], pad_id=pad_id)
        self.model = load_model(model_folder)
        self.captions = [item["text"] for item in self.texts]
        assert [item["id"] for item in self.texts] == [record["id"] for record in self.records]

    @torch.no_grad()
    def embed(self, texts, *, model=None, causal=False):
        ids, attention, embed = self.reader.batch(texts)
        hidden = (model or self.model)(ids, attention, causal=causal)
        return self.reader.pool(hidden, embed)

    def each_alone(self, **options):
        return torch.cat([self.embed([text], **options) for text in self.captions])

    @cached_property
    def alone(self):
        return self.each_alone()

    @property
    def pooled(self):
        """Texts with something to pool: the others' result depends on the batch."""
        return torch.tensor([record["n_pooled"] > 0 for record in self.records])


class Setting:
    """What was recorded, with the comparisons of one test."""

    def __init__(self, case, recorded: Recorded) -> None:
        self.case, self.recorded = case, recorded
        self.name = f"{recorded.folder.parent.name}/{recorded.folder.name}"

    def check(self, key, got, expected):
        self.case.check(f"{self.name} {key}", got, expected)

    def exact(self, key, got, expected):
        self.case.exact(f"{self.name} {key}", got, expected)


@cache
def load(folder: Path) -> Recorded:
    return Recorded(folder)


@pytest.fixture
def setting(golden, setting_name) -> Setting:
    golden.folder("d_llm2vec")
    if setting_name.rpartition("/")[2] not in SETTINGS:
        golden.note(f"{setting_name}: not covered yet, no such setting in the runner")
        pytest.skip(f"no rules for setting {setting_name}")
    case = golden.case(f"d_llm2vec/{setting_name}")
    return Setting(case, load(case.folder))


def test_text_reader_ids_and_masks_of_each_text(setting):
    recorded = setting.recorded
    for text, record in zip(recorded.captions, recorded.records, strict=True):
        name = record["id"]
        ids, attention, embed = recorded.reader.batch([text])
        setting.exact(f"{name} prepared", recorded.reader.prepared(text), record["prepared"])
        setting.exact(f"{name} input_ids", ids[0].tolist(), record["input_ids"])
        setting.exact(f"{name} embed_mask", embed[0].tolist(), record["embed_mask"])
        setting.exact(f"{name} n_tokens", ids.shape[1], record["n_tokens"])
        setting.exact(f"{name} n_pooled", int(embed.sum()), record["n_pooled"])
        assert record["attention_mask_all_ones"]
        assert bool((attention == 1).all())


def test_text_reader_ids_and_masks_of_the_whole_batch(setting):
    batch = setting.recorded.reader.batch(setting.recorded.captions)
    for key, got in zip(("input_ids", "attention_mask", "embed_mask"), batch, strict=True):
        setting.exact(f"batch.{key}", got, setting.recorded.expected[f"batch.{key}"].long())


def test_llm2vec_embeddings_of_texts_alone(setting):
    got, expected = setting.recorded.alone, setting.recorded.expected
    setting.check("embeddings_alone", got, expected["embeddings_alone"])
    setting.check("embeddings_alone_fp64", got, expected["embeddings_alone_fp64"])
    if "embeddings_normalized" in expected:
        normalized = torch.nn.functional.normalize(got, dim=1)
        setting.check("embeddings_normalized", normalized, expected["embeddings_normalized"])


def test_llm2vec_embeddings_of_batches(setting):
    recorded = setting.recorded
    pooled, expected, captions = recorded.pooled, recorded.expected, recorded.captions
    got = recorded.embed(captions)
    setting.check("embeddings_batch_all", got[pooled], expected["embeddings_batch_all"][pooled])
    order = sorted(range(len(captions)), key=lambda number: -len(captions[number]))
    got = torch.empty_like(got)
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        got[chosen] = recorded.embed([captions[number] for number in chosen])
    setting.check("embeddings_batch32", got[pooled], expected["embeddings_batch32"][pooled])


@torch.no_grad()
def test_text_reader_pools_the_padded_row_where_no_token_counts(setting):
    recorded = setting.recorded
    nothing = ~recorded.pooled
    ids, attention, embed = recorded.reader.batch(recorded.captions)
    assert ((embed.sum(dim=1) == 0) == nothing).all()
    if not nothing.any():
        pytest.skip("every text of this setting pools something")
    hidden = recorded.model(ids[nothing], attention[nothing])
    got = recorded.reader.pool(hidden, embed[nothing])
    setting.check("n_pooled = 0", got, hidden.mean(dim=1))
    assert (got - recorded.expected["embeddings_alone"][nothing]).abs().max() > 1e-3


@torch.no_grad()
def test_llama_hidden_states(setting):
    recorded = setting.recorded
    keys = [key for key in recorded.expected if key.startswith("debug.")]
    assert keys
    texts = {item["id"]: item["text"] for item in recorded.texts}
    for name in {key.split(".")[1] for key in keys}:
        states: list[torch.Tensor] = []
        ids, attention, _ = recorded.reader.batch([texts[name]])
        recorded.model(ids, attention, hidden_states=states)
        assert len(states) == sum(key.split(".")[1] == name for key in keys)
        for number, state in enumerate(states):
            key = f"debug.{name}.hidden_states.{number}"
            setting.check(key, state, recorded.expected[key])


def test_llama_differs_with_causal_attention(setting):
    recorded = setting.recorded
    wrong = recorded.expected["wrong/causal_embeddings_alone"]
    setting.check("wrong/causal_embeddings_alone", recorded.each_alone(causal=True), wrong)
    several = torch.tensor([record["n_tokens"] > 1 for record in recorded.records])
    distance = (recorded.alone - wrong).abs().amax(dim=1)
    assert (distance[several] > 1e-4).all()


def test_llama_differs_without_rope_scaling(setting):
    recorded = setting.recorded
    if not (recorded.folder / "wrong_no_rope_scaling.safetensors").is_file():
        pytest.skip("recorded for one setting of a model with rope scaling only")
    assert recorded.model.config.rope_scaling is not None
    wrong = setting.case.tensors("wrong_no_rope_scaling.safetensors")["embeddings_alone"]
    plain = recorded.each_alone(model=without_rope_scaling(recorded.model))
    setting.check("wrong_no_rope_scaling", plain[recorded.pooled], wrong[recorded.pooled])
    distance = (recorded.alone - wrong).abs().amax(dim=1)
    long = torch.tensor([record["n_tokens"] > 20 for record in recorded.records])
    assert (distance[long] > 1e-4).all()
