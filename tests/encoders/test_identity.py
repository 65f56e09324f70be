"""What tells two encoders apart: all that shapes vectors, and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm2clip import encoders
from llm2clip.encoders import Encoder, load_encoder
from llm2clip.encoders.core.files import settings_sha256

TEXT = "A Red Kite over the harbour"


def changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], object], *, file: str) -> Encoder:
    """The encoder of a copy with one file of JSON edited."""
    copy = Path(shutil.copytree(folder, target))
    content = json.loads((copy / file).read_text(encoding="utf-8"))
    change(content)
    (copy / file).write_text(json.dumps(content), encoding="utf-8")
    return load_encoder(copy, device="cpu")


def vectors(encoder: Encoder) -> np.ndarray:
    gradient = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    return np.concatenate((encoder.encode_texts([TEXT]), encoder.encode_images([Image.fromarray(gradient)])))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", lambda data: data["text_rules"].update(header="photo: ")),
        ("config.json", lambda data: data["text_rules"].update(max_tokens=12)),
        ("config.json", lambda data: data["text"].update(rope_theta=500.0)),
        ("config.json", lambda data: data["text"].update(rms_norm_eps=0.1)),
        ("config.json", lambda data: data["adapter"].update(normalize_input=False)),
        ("tokenizer.json", lambda data: data.update(normalizer={"type": "Lowercase"})),
    ],
    ids=["header", "max_tokens", "rope_theta", "rms_norm_eps", "normalize_input", "tokenizer"],
)
@pytest.mark.filterwarnings("ignore:the text is too long")
def test_identity_changes_with_vectors(
    tiny_folder: Path, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object]
):
    before = load_encoder(tiny_folder, device="cpu")
    after = changed(tiny_folder, tmp_path / "changed", change, file=file)
    assert np.abs(vectors(after) - vectors(before)).max() > 1e-4
    assert after.info.weights_sha256 == before.info.weights_sha256
    assert after.info.identity() != before.info.identity()


def test_identity_ignores_what_is_for_people(tiny_folder: Path, tmp_path: Path):
    told = {"name": "other", "note": "another note", "licence": "none", "languages": ["sw"]}
    before = load_encoder(tiny_folder, device="cpu").info.identity()
    after = changed(tiny_folder, tmp_path / "a", lambda data: data.update(told), file="config.json")
    assert {**after.info.identity(), "name": "tiny"} == before
    # Written out in another order and without the values that are defaults anyway.
    bare = changed(
        tiny_folder, tmp_path / "b", lambda data: data["text"].pop("rope_theta"), file="config.json"
    )
    assert bare.info.identity() == before


def test_settings_sha256_covers_settings_and_files(tmp_path: Path):
    first, second = tmp_path / "1" / "t.json", tmp_path / "2" / "t.json"
    for file in (first, second):
        file.parent.mkdir()
        file.write_text("{}")
    known = settings_sha256({"a": 1, "b": (2, 3)}, files=[first])
    # Written out, because indexes hold it: another way of hashing would make them all strangers.
    assert (
        known
        == hashlib.sha256(
            b'{"files": {"t.json": "%s"}, "settings": {"a": 1, "b": [2, 3]}}'
            % hashlib.sha256(b"{}").hexdigest().encode()
        ).hexdigest()
    )
    assert settings_sha256({"b": [2, 3], "a": 1}, files=[second]) == known
    second.write_text("[]")
    others = [
        settings_sha256({"a": 1, "b": [2, 3]}, files=[second]),
        settings_sha256({"a": 1, "b": [2, 3]}, files=[]),
        settings_sha256({"a": 1, "b": [3, 2]}, files=[first]),
        settings_sha256({"a": 1.5, "b": [2, 3]}, files=[first]),
    ]
    assert len({known, *others}) == 5


def test_identity_of_nano_is_on_its_card():
    info = load_encoder("nano", device="cpu").info
    card = (Path(encoders.__file__).parent / "nano" / "README.md").read_text(encoding="utf-8")
    assert f"encoder nano, weights {info.weights_sha256[:12]}, settings {info.settings_sha256[:12]}" in card
