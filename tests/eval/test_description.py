"""What decides vectors decides the key they are kept under; what does not, does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm2clip.encoders import FakeEncoder, Runtime
from llm2clip.eval.results import encoder_record as description
from llm2clip.eval.results.encoder_record import describe, store_key

ENCODER = FakeEncoder()


def test_labels_and_numbers_of_devices_do_not_count():
    plain = describe(ENCODER, device="cuda")
    for same in (describe(ENCODER, label="mine", device="cuda"), describe(ENCODER, device="cuda:1")):
        assert same.key == plain.key
        assert store_key(same) == store_key(plain)
    assert (plain.dtype, describe(ENCODER, label="mine").label) == ("float32", "mine")


@pytest.mark.parametrize(
    "other",
    [{"dtype": "float16"}, {"device": "cuda"}, {"parity": "upstream"}],
    ids=lambda one: next(iter(one)),
)
def test_arithmetic_device_and_parity_count(other):
    assert describe(ENCODER, **other).key != describe(ENCODER).key


@pytest.mark.parametrize(
    ("field", "value"),
    [("weights_sha256", "f" * 64), ("settings_sha256", "f" * 64), ("preprocessing", "squash"), ("dim", 99)],
)
def test_weights_settings_and_preprocessing_count(monkeypatch, field, value):
    usual = describe(ENCODER).key
    changed = replace(ENCODER.info, **{field: value})
    monkeypatch.setattr(FakeEncoder, "info", property(lambda _: changed))
    assert describe(ENCODER).key != usual


def test_another_release_has_vectors_of_its_own(monkeypatch):
    record = describe(ENCODER)
    usual = store_key(record)
    monkeypatch.setattr(description, "code_version", lambda: "99.0")
    assert store_key(record) != usual


def test_describe_keys_vectors_by_the_dtype_of_each_tower(monkeypatch):
    keys = set()
    for images, texts in [("float16", "int8"), ("float32", "int8"), ("float16", "int4")]:
        runtime = Runtime(image_dtype=images, text_dtype=texts)
        monkeypatch.setattr(
            FakeEncoder, "runtime", property(lambda _, runtime=runtime: runtime), raising=False
        )
        keys.add(describe(ENCODER).key)
    assert len(keys) == 3
