"""Encoders by name: what is known, what is not, and how to go on."""

from __future__ import annotations

from pathlib import Path

import pytest

import llm2clip.encoders
from llm2clip.encoders import Llm2ClipEncoder, ModelError, list_encoders, load_encoder

NANO = Path(llm2clip.encoders.__file__).parent / "nano"


def test_cards_say_what_one_must_know():
    cards = list_encoders()
    assert [card.name for card in cards] == ["nano", "clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14"]
    assert all(card.summary and card.size and card.quality for card in cards)
    assert [card.name for card in cards if not card.download] == ["nano"]


def test_every_card_is_about_a_model_there_is():
    from llm2clip.encoders.catalogue import find_encoder

    for card in list_encoders():
        if card.name != "nano":
            row = find_encoder(card.name)
            assert row is not None
            assert card.download == f"{row.repository} from the Hugging Face hub"


@pytest.mark.skipif(not (NANO / "config.json").is_file(), reason="nano is not trained yet")
def test_nano_ships_with_the_package():
    encoder = load_encoder("nano", device="cpu")
    card = list_encoders()[0]
    megabytes = (NANO / "model.safetensors").stat().st_size / 1e6
    assert isinstance(encoder, Llm2ClipEncoder)
    encoder.load_all()
    assert encoder.info.name == "nano"
    assert megabytes <= 20
    assert card.size == f"{megabytes:.0f} MB"


def test_a_folder_is_loaded(tiny_folder: Path):
    for given in (tiny_folder, str(tiny_folder)):
        encoder = load_encoder(given, device="cpu")
        assert isinstance(encoder, Llm2ClipEncoder)
        assert encoder.info.name == "tiny"


def test_a_relative_folder_is_loaded(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tiny_folder.parent)
    assert load_encoder("tiny", device="cpu").info.name == "tiny"


def test_unknown_name_lists_the_known():
    with pytest.raises(ModelError) as caught:
        load_encoder("clip-vit-b32")
    assert str(caught.value) == (
        "unknown encoder 'clip-vit-b32', and no folder of that name; did you mean 'clip-vit-b-32'? "
        "known: nano, clip-vit-b-32, clip-vit-b-16, clip-vit-l-14"
    )
    with pytest.raises(ModelError, match="no folder of that name; known: nano"):
        load_encoder("siglip")


def test_a_folder_that_is_not_there(tmp_path: Path):
    for given in (tmp_path / "none", str(tmp_path / "none")):
        with pytest.raises(ModelError, match=r"no such encoder folder: .*none"):
            load_encoder(given)
