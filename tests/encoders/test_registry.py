"""Encoders by name: what is known, what is not, and how to go on."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import llm2clip.encoders
from llm2clip.encoders import DualEncoder, ModelError, list_encoders, load_encoder

NANO = Path(llm2clip.encoders.__file__).parent / "nano"


def test_list_encoders_gives_complete_cards():
    cards = list_encoders()
    assert cards[0].name == "nano"
    assert {card.name for card in cards if card.recommended} == {
        "nano",
        "clip-vit-b-32",
        "clip-vit-b-16",
        "clip-vit-l-14",
        "llm2clip-llama3.2-1b-eva02-l-14-336",
        "llm2clip-eva02-l-14-336",
        "llm2clip-openai-l-14-336",
        "chinese-clip-b-16",
        "siglip2-b-16-256",
    }
    for card in cards:
        assert card.summary, card.name
        assert card.size, card.name
        assert card.quality, card.name
        assert card.licence, card.name
        assert card.languages, card.name
        assert min(card.parameters, card.dim, card.image_size, card.max_text_tokens) > 0, card.name
        assert all(size > 0 for size in card.memory.values()), card.name
    assert [card.name for card in cards if not card.download] == ["nano"]
    assert len({card.name for card in cards}) == len(cards)


def test_list_encoders_describes_entries_of_the_catalogue():
    from llm2clip.encoders.catalog.entries import find_encoder, find_language

    for card in list_encoders()[1:]:
        row = find_encoder(card.name)
        assert row is not None
        language, beside = find_language(row.language_model), find_encoder(row.beside)
        assert card.download.startswith(row.repository)
        assert card.download.endswith(" from the Hugging Face hub")
        assert all(other.repository in card.download for other in (language, beside) if other)
        more = card.download_bytes - row.download_bytes
        assert more in (0, *(other.download_bytes for other in (language, beside) if other))
        assert more == 0 or language


def test_list_encoders_describes_nano_as_its_info():
    card, info = list_encoders()[0], load_encoder("nano", device="cpu").info
    assert (card.dim, card.image_size, card.max_text_tokens, card.parameters, card.family, card.licence) == (
        info.dim,
        info.image_size,
        info.max_text_tokens,
        info.parameters,
        info.family,
        info.licence,
    )


def test_list_encoders_imports_nothing_heavy():
    code = "import sys; from llm2clip.encoders import list_encoders; list_encoders(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"torch", "transformers", "PIL", "safetensors", "tokenizers"}.isdisjoint(loaded)


def test_load_encoder_finds_nano_in_the_package():
    encoder = load_encoder("nano", device="cpu")
    card = list_encoders()[0]
    megabytes = (NANO / "model.safetensors").stat().st_size / 1e6
    assert isinstance(encoder, DualEncoder)
    encoder.load_all()
    assert encoder.info.name == "nano"
    assert megabytes <= 60
    assert card.size == f"{megabytes:.0f} MB"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_nano_gives_the_same_vectors_alone_in_a_batch_and_on_any_number_of_threads(threads):
    encoder = load_encoder("nano", device="cpu")
    texts = ["zebra", "una cebra", "лиса в снегу", "狗", "a red bicycle. " * 60]
    with tarfile.open(NANO.parents[1] / "indexer" / "sample" / "photographs.tar") as tar:
        members = [member for member in tar if not member.name.endswith(".json")][:4]
        images = [tar.extractfile(member).read() for member in members]
    threads(2)
    expected = encoder.encode_texts(texts), encoder.encode_images(images)
    for count in (1, 2):
        threads(count)
        alone = (
            np.concatenate([encoder.encode_texts([text]) for text in texts]),
            np.concatenate([encoder.encode_images([image]) for image in images]),
        )
        for found, wanted in zip(alone, expected, strict=True):
            assert (found * wanted).sum(1).min() >= 0.99999


def test_load_encoder_reads_folder(tiny_folder: Path):
    for given in (tiny_folder, str(tiny_folder)):
        encoder = load_encoder(given, device="cpu")
        assert isinstance(encoder, DualEncoder)
        assert encoder.info.name == "tiny"


def test_load_encoder_reads_relative_folder(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tiny_folder.parent)
    assert load_encoder("tiny", device="cpu").info.name == "tiny"


def test_load_encoder_refuses_unknown_name():
    more = len(list_encoders()) + 3 - 9  # language models; those that are named
    with pytest.raises(ModelError) as caught:
        load_encoder("clip-vit-b32")
    assert str(caught.value) == (
        "unknown encoder 'clip-vit-b32', and no folder of that name; did you mean 'clip-vit-b-32'? "
        "known: nano, siglip2-b-16-256, llm2clip-llama3.2-1b-eva02-l-14-336, llm2clip-eva02-l-14-336, "
        "llm2clip-openai-l-14-336, chinese-clip-b-16, clip-vit-b-32, clip-vit-b-16, clip-vit-l-14, "
        f"and {more} more that llm2clip-index encoders lists"
    )
    with pytest.raises(
        ModelError, match="did you mean 'clip-vit-b-32' or 'clip-vit-b-16' or 'clip-vit-l-14'"
    ):
        load_encoder("clip")
    with pytest.raises(ModelError, match="no folder of that name; known: nano"):
        load_encoder("zzz")


def test_load_encoder_refuses_missing_folder(tmp_path: Path):
    for given in (tmp_path / "none", str(tmp_path / "none")):
        with pytest.raises(ModelError, match=r"no such encoder folder: .*none"):
            load_encoder(given)


def test_list_encoders_gives_the_licence_of_the_language_model():
    """It is the larger half, and Llama's has conditions of its own."""
    licences = {card.name: card.licence for card in list_encoders()}
    assert licences["llm2clip-openai-l-14-336"] == (
        "Apache-2.0; language model: Apache-2.0; Llama 3 community licence for the base"
    )
    assert all(("Llama" in licence) == name.startswith("llm2clip-") for name, licence in licences.items())
