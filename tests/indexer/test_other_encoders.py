"""Which encoder an index belongs to: what is refused, and what is the same encoder at another place."""

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import BuildOptions, EncoderMismatchError, build_index, open_index

from .material import encoded


def test_another_encoder_is_refused_in_one_sentence(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    with pytest.raises(EncoderMismatchError) as failure:
        build_index(photos, tmp_path / "i", encoder=FakeEncoder(name="other", dim=8))
    assert str(failure.value) == (
        f"{tmp_path}/i was built with encoder 'fake' (dim 16), got 'other' (dim 8): build with the first, choose "
        "another place with --index, or replace it with --overwrite"
    )
    with pytest.raises(
        EncoderMismatchError, match=r"was built with another version of encoder 'fake' .weights_sha256 "
    ):
        build_index(photos, tmp_path / "i", encoder=FakeEncoder(seed=1))
    with pytest.raises(
        EncoderMismatchError,
        match=r"another version of encoder 'fake' .settings_sha256 \w{12}, got \w{12}.: ",
    ):
        build_index(photos, tmp_path / "i", encoder=FakeEncoder(max_text_tokens=5))
    with open_index(tmp_path / "i") as index:
        assert len(index) == 30
        index.require_encoder(encoder.info)
        with pytest.raises(
            EncoderMismatchError, match=r"was built with encoder 'fake' .dim 16., got 'other' .dim 8.. S"
        ):
            index.require_encoder(FakeEncoder(name="other", dim=8).info)


def test_an_encoder_of_another_name_is_the_same_one(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    renamed = FakeEncoder(name="moved")
    with open_index(tmp_path / "i") as index:
        index.require_encoder(renamed.info)
    (photos / "new.png").write_bytes(encoded((200, 1, 1)))
    report = build_index(photos, tmp_path / "i", encoder=renamed)
    assert (report.embedded, report.kept) == (1, 30)
    with open_index(tmp_path / "i") as index:
        assert index.info().encoder["name"] == "moved"
        assert index.info().encoder_source == "moved"


def test_building_again_notes_where_the_encoder_lies_now(photos, tmp_path, encoder):
    first, now = (BuildOptions(encoder_source=f"/models/{place}") for place in ("old", "new"))
    build_index(photos, tmp_path / "i", encoder=encoder, options=first)
    report = build_index(photos, tmp_path / "i", encoder=FakeEncoder(name="new"), options=now)
    assert (report.up_to_date, report.encoder) == (True, "new")
    with open_index(tmp_path / "i") as index:
        assert (index.info().encoder_source, index.info().encoder["name"]) == ("/models/new", "new")
        assert (index.info().generation, index.verify().ok) == (1, True)
    # A build that does not say where its encoder lies changes nothing.
    build_index(photos, tmp_path / "i", encoder=encoder)
    with open_index(tmp_path / "i") as index:
        assert index.info().encoder_source == "/models/new"
