"""What decides vectors decides the key they are kept under; what does not, does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm2clip.encoders import FakeEncoder, Runtime
from llm2clip.eval.results import encoder_record as encoder_record
from llm2clip.eval.results.encoder_record import describe, store_key

ENCODER = FakeEncoder()


def on(monkeypatch, **runtime):
    monkeypatch.setattr(FakeEncoder, "runtime", property(lambda _: Runtime(**runtime)), raising=False)
    return describe(ENCODER)


def test_describe_key_ignores_label_and_device_number(monkeypatch):
    plain = on(monkeypatch, device="cuda")
    for same in (describe(ENCODER, label="mine"), on(monkeypatch, device="cuda:1")):
        assert same.key == plain.key
        assert store_key(same) == store_key(plain)
    assert (plain.dtype, describe(ENCODER, label="mine").label) == ("float32", "mine")


@pytest.mark.parametrize(
    "runtime",
    [{"image_dtype": "float16"}, {"text_dtype": "int8"}, {"text_dtype": "int4"}, {"device": "cuda"}],
    ids=str,
)
def test_describe_key_depends_on_runtime(monkeypatch, runtime):
    usual = describe(ENCODER).key
    assert on(monkeypatch, **runtime).key != usual


def test_describe_key_depends_on_parity():
    assert describe(ENCODER, parity="reference").key != describe(ENCODER).key


@pytest.mark.parametrize(
    ("field", "value"),
    [("weights_sha256", "f" * 64), ("settings_sha256", "f" * 64), ("preprocessing", "squash"), ("dim", 99)],
)
def test_describe_key_depends_on_weights_settings_and_preprocessing(monkeypatch, field, value):
    usual = describe(ENCODER).key
    changed = replace(ENCODER.info, **{field: value})
    monkeypatch.setattr(FakeEncoder, "info", property(lambda _: changed))
    assert describe(ENCODER).key != usual


def test_describe_marks_what_is_only_called_like_a_published_encoder(monkeypatch):
    """A toy of two layers under the name of CLIP B/16 is not compared with its printed numbers."""
    published = replace(ENCODER.info, name="clip-vit-b-16", family="clip", dim=512, parameters=149_620_737)
    found = []
    for info in (published, replace(published, parameters=90_000), ENCODER.info):
        monkeypatch.setattr(FakeEncoder, "info", property(lambda _, info=info: info))
        found.append((describe(ENCODER).published, describe(ENCODER).repository))
    assert found == [("unverified", "openai/clip-vit-base-patch16"), ("other", ""), ("", "")]


def test_store_key_depends_on_the_release(monkeypatch):
    record = describe(ENCODER)
    usual = store_key(record)
    monkeypatch.setattr(encoder_record, "code_version", lambda: "99.0")
    assert store_key(record) != usual
