"""The tables: complete, at one with arithmetic and with each other, and strict."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm2clip.encoders import EncoderInfo, ModelError
from llm2clip.encoders.catalog import entries as catalogue
from llm2clip.encoders.catalog.cards import adapter_parameters
from llm2clip.encoders.catalog.entries import (
    check_name,
    encoder_entries,
    find_encoder,
    find_language,
    language_models,
    language_of,
    pairing_problem,
)

PUBLISHED = [row for row in encoder_entries() if row.layout]
NAMES = {
    "llm2clip-openai-b-16": "LLM2CLIP-Openai-B-16",
    "llm2clip-openai-l-14-224": "LLM2CLIP-Openai-L-14-224",
    "llm2clip-openai-l-14-336": "LLM2CLIP-Openai-L-14-336",
    "llm2clip-eva02-b-16": "LLM2CLIP-EVA02-B-16",
    "llm2clip-eva02-l-14-336": "LLM2CLIP-EVA02-L-14-336",
    "llm2clip-llama3.2-1b-eva02-l-14-336": "LLM2CLIP-Llama3.2-1B-EVA02-L-14-336",
    "llm2clip-llama3.1-8b-siglip2-so400m-patch14-224": "LLM2CLIP-Llama3.1-8B-siglip2-so400m-patch14-224",
}
"""All that were published with weights."""
LANGUAGES = {
    "llama-3-8b-cc": "microsoft/LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned",
    "llama-3.2-1b-cc": "microsoft/LLM2CLIP-Llama-3.2-1B-Instruct-CC-Finetuned",
    "llama-3.1-8b-cc": "meta-llama/Llama-3.1-8B-Instruct",
}


def test_encoder_entries_hold_every_published_model():
    assert {row.name: row.repository for row in PUBLISHED} == {
        name: f"microsoft/{repository}" for name, repository in NAMES.items()
    }
    assert {row.name: row.repository for row in language_models()} == LANGUAGES


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_encoder_entry_is_complete(row: catalogue.EncoderEntry):
    assert re.fullmatch(r"|[0-9a-f]{8,40}", row.revision)
    assert re.fullmatch(r"|[0-9a-f]{64}", row.weights_sha256)
    assert row.files
    assert row.licence
    assert row.note
    assert row.source
    assert row.preprocessing
    assert row.dim == (1152 if row.layout == "siglip2" else 1280)
    language = language_of(row)
    # A row of 512 tokens less begin token and header; what a card's own limit leaves, and the end token.
    assert row.max_text_tokens == min(language.max_tokens - 5, language.doc_max_length + 1)
    width = 2 if row.layout == "eva02" else 4
    assert row.download_bytes - width * row.parameters in (0, 234_452)  # the latter with what the .pt adds
    known = [recall for recall in (row.published, row.nearest) if recall.flickr30k_t2i_r1 is not None]
    assert len(known) == 1
    assert bool(row.nearest_setting) == (row.nearest != catalogue.Recall())


def test_adapter_parameters_equals_the_reference():
    assert adapter_parameters(4096, 1280) == 273_769_728
    assert adapter_parameters(2048, 1280) == 69_776_640


def test_encoder_entries_scale_states_except_siglip():
    for row in PUBLISHED:
        siglip = row.layout == "siglip2"
        assert (row.normalize_input, row.half_features) == (not siglip, siglip)


def test_language_models_have_the_rules_of_their_cards():
    assert {row.name: (row.wrapper, row.max_tokens, row.doc_max_length) for row in language_models()} == {
        "llama-3-8b-cc": ("llama3", 512, 512),
        "llama-3.2-1b-cc": ("llama3", 512, 400),
        "llama-3.1-8b-cc": ("llama3", 512, 512),
    }


@pytest.mark.parametrize(
    "spelling",
    ["{name}", "{repository}", "microsoft/{repository}", "{upper}"],
    ids=["name", "repo", "hub", "upper"],
)
def test_find_encoder_accepts_every_spelling(spelling: str):
    for name, repository in NAMES.items():
        asked = spelling.format(name=name, repository=repository, upper=name.upper())
        assert find_encoder(asked).name == name
        assert find_language(asked) is None


def test_pairing_problem_names_the_partner():
    assert pairing_problem(
        "llm2clip-openai-l-14-336", width=4096, language="llama-3.2-1b-cc", hidden=2048
    ) == (
        "llm2clip-openai-l-14-336 reads language models of width 4096, but llama-3.2-1b-cc is 2048 wide; its partner "
        "is llama-3-8b-cc; llama-3.2-1b-cc goes with llm2clip-llama3.2-1b-eva02-l-14-336"
    )
    assert pairing_problem("mine", width=4096, language="theirs", hidden=999) == (
        "mine reads language models of width 4096, but theirs is 999 wide; its partner is llama-3-8b-cc or "
        "llama-3.1-8b-cc"
    )


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "table.toml"
    monkeypatch.setattr(catalogue, "_TABLES", (path,))
    for cached in (encoder_entries, language_models):
        cached.cache_clear()
    yield path
    monkeypatch.undo()
    for cached in (encoder_entries, language_models):
        cached.cache_clear()


ROW = '[[encoder]]\nname = "a"\nfamily = "f"\nrepository = "o/a"\ndim = 1\nimage_size = 1\nmax_text_tokens = 1\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ROW + 'colour = "red"\n', r"table\.toml: encoder 1: unknown keys: \['colour'\]"),
        (ROW.replace("dim = 1\n", ""), r"table\.toml: encoder 1: missing keys: \['dim'\]"),
        (ROW + ROW, "the catalogue has two encoders of one name: a"),
        (ROW + 'download_bytes = "much"\n', r"encoder 1\.download_bytes: expected int, got str 'much'"),
    ],
)
def test_encoder_entries_refuses_invalid_table(table: Path, text: str, reason: str):
    table.write_text(text)
    with pytest.raises(ModelError, match=reason):
        encoder_entries()


def test_language_of_refuses_unknown_language_model(table: Path):
    table.write_text(ROW + 'language_model = "b"\n')
    with pytest.raises(ModelError, match="the catalogue has no language model 'b', which a needs"):
        language_of(encoder_entries()[0])


CLIP = {"family": "clip", "dim": 512, "parameters": 149_620_737, "weights_sha256": "a" * 64}
"""ViT-B/16 as OpenAI published it."""
EVA_SHA256 = "408f4c9dfd708155972af4a4d224a7bf42bb2e71420e9b9a82377dee737dedbb"
EVA = {"family": "llm2clip", "dim": 1280, "parameters": 8_000_000_000}


@pytest.mark.parametrize(
    ("name", "given", "state", "note"),
    [
        ("clip-vit-b-16", CLIP, "unverified", "sizes are those of the published clip-vit-b-16"),
        ("CLIP-ViT-base-patch16", CLIP, "unverified", "published clip-vit-b-16"),
        ("clip-vit-b-16", {**CLIP, "parameters": 151_277_313}, "other", "151,277,313 parameters, expected 149"),
        ("clip-vit-b-16", {**CLIP, "dim": 16, "parameters": 90_000}, "other", "length 16, expected 512; 90,000"),
        ("clip-vit-b-16", {**CLIP, "family": "siglip"}, "other", "family siglip, expected clip"),
        ("my-clip", {**CLIP, "dim": 16}, "", ""),
        ("llm2clip-eva02-l-14-336", {**EVA, "weights_sha256": EVA_SHA256}, "verified", ""),
        ("llm2clip-eva02-l-14-336", {**EVA, "weights_sha256": "f" * 64}, "other", "ffffffffffff, expected 408f"),
    ],
)  # fmt: skip
def test_check_name_compares_sizes_and_hash(name, given, state, note):
    other = {
        "image_size": 224,
        "max_text_tokens": 77,
        "settings_sha256": "",
        "preprocessing": "",
        "languages": (),
    }
    found = check_name(EncoderInfo(name=name, licence="", note="", **given | other))
    assert found.state == state
    assert note in found.note
    assert bool(found.note) == (state in ("unverified", "other"))
