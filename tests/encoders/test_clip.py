"""A folder of transformers' CLIP: its files, settings and tensors, and where it is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm2clip.encoders import ModelError, load_encoder
from llm2clip.encoders.baselines.hf_dual import Checkpoint
from llm2clip.encoders.catalog.entries import EncoderEntry, baseline_entries, find_encoder
from llm2clip.encoders.catalog.hub import ModelFiles

from .test_families import Reference, sample_images

TEXTS = ["a red bicycle in the rain", "cat", "two dogs, one ball!", "Ein Hund"]


@pytest.fixture
def saved(references: dict[str, Reference]) -> Path:
    """A random CLIP of two layers as transformers saves it. Not to be written to."""
    return references["clip"].folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "my-clip")


def test_info_does_not_depend_on_the_folder(saved: Path, folder: Path):
    before, after = load_encoder(saved).info, load_encoder(folder).info
    assert (before.name, after.name) == (saved.name, "my-clip")
    assert {**after.identity(), "name": before.name} == before.identity()
    change(folder, "config.json", transformers_version="4.0.0")
    assert load_encoder(folder).info.settings_sha256 == before.settings_sha256


@pytest.mark.parametrize(
    ("file", "change_to"),
    [("config.json", {"text_config.hidden_act": "gelu"}), ("tokenizer.json", {"normalizer": None})],
)
def test_info_depends_on_settings(saved: Path, folder: Path, file: str, change_to: dict[str, object]):
    content = json.loads((folder / file).read_text())
    for name, value in change_to.items():
        *outer, inner = name.split(".")
        (content[outer[0]] if outer else content)[inner] = value
    (folder / file).write_text(json.dumps(content))
    before, after = load_encoder(saved).info, load_encoder(folder).info
    assert after.weights_sha256 == before.weights_sha256
    assert after.settings_sha256 != before.settings_sha256


def test_load_encoder_reads_pytorch_model_bin(saved: Path, folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    old, new = load_encoder(folder), load_encoder(saved)
    assert np.array_equal(old.encode_texts(TEXTS), new.encode_texts(TEXTS))
    assert np.array_equal(old.encode_images(sample_images()), new.encode_images(sample_images()))
    assert old.info.parameters == new.info.parameters


def change(folder: Path, file: str, **values: object) -> None:
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**settings, **values}))


def test_load_encoder_names_wrong_tensors(folder: Path):
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "text_model.final_layer_norm.weight"
    cases = [
        ({k: v for k, v in tensors.items() if k != name}, f"missing tensors: {name}"),
        ({**tensors, "text_model.extra": torch.zeros(1)}, "unexpected tensors: text_model.extra"),
        ({**tensors, "stray": torch.zeros(1)}, "unexpected tensors: stray"),
        ({**tensors, name: torch.zeros(5)}, rf"{name} is F32 \[5\], expected F32 \[32\]"),
        ({**tensors, name: torch.zeros(32).long()}, rf"{name} is I64 \[32\], expected F32 \[32\]"),
    ]
    for spoilt, message in cases:
        save_file(spoilt, weights)
        with pytest.raises(ModelError, match=message):
            load_encoder(folder).encode_texts(["cat"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_center_crop": False}, "unsupported do_center_crop: False, expected True"),
        (
            {"size": {"shortest_edge": 32}},
            r"unsupported size: .*, expected 28 or \{'shortest_edge': 28\}",
        ),
        (
            {"size": {"height": 28, "width": 20}},
            r"unsupported size: .*, expected 28 or \{'height': 28, 'width': 28\}",
        ),
        ({"crop_size": 14}, r"unsupported crop_size: 14, expected 28 or "),
        ({"resample": 0}, "unsupported resample: 0, expected 1 or 2 or 3"),
        ({"rescale_factor": 1.0}, "unsupported rescale_factor: 1.0"),
        ({"image_mean": [0.5]}, "mean: expected 3 values, got 1"),
        ({"image_std": [0.5, 0.0, 0.5]}, "std must be positive"),
    ],
)
def test_read_preprocess_refuses_unsupported_settings(values: dict[str, object], message: str, folder: Path):
    change(folder, "preprocessor_config.json", **values)
    with pytest.raises(ModelError, match=message):
        load_encoder(folder)


def test_read_preprocess_reads_old_notation(folder: Path, saved: Path):
    change(folder, "preprocessor_config.json", size=28, crop_size=28)
    assert load_encoder(folder).info.preprocessing == load_encoder(saved).info.preprocessing
    (folder / "preprocessor_config.json").unlink()
    assert load_encoder(folder).info.preprocessing == load_encoder(saved).info.preprocessing


@pytest.mark.parametrize("old_file_too", [False, True])
def test_read_preprocess_reads_what_transformers_5_saves(folder: Path, old_file_too: bool):
    from transformers import CLIPImageProcessorPil, CLIPModel

    half = [0.5] * 3
    settings = CLIPImageProcessorPil(
        size={"height": 28, "width": 28}, do_center_crop=False, image_mean=half, image_std=half
    )
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings.to_dict()}))
    if not old_file_too:  # where both say something, transformers follows the new one
        (folder / "preprocessor_config.json").unlink()
    wide = [each.resize((90, 30)) for each in sample_images()]
    with torch.inference_mode():
        pixels = settings(images=wide, return_tensors="pt")
        expected = CLIPModel.from_pretrained(folder).eval().get_image_features(**pixels).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
    assert (load_encoder(folder).encode_images(wide) * expected).sum(1).min() > 0.999999
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"resample": 0}}))
    with pytest.raises(ModelError, match=r"processor_config.json: unsupported resample: 0"):
        load_encoder(folder)


def test_load_encoder_names_missing_files(folder: Path):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(
        ModelError,
        match=r"my-clip has no tokenizer: expected tokenizer\.json, or vocab\.json and merges\.txt, or vocab\.txt",
    ):
        load_encoder(folder).encode_texts(["cat"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"has no weights: expected model\.safetensors or pytorch_model\.bin"
    ):
        load_encoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError):
        load_encoder(folder)


def test_checkpoint_refuses_other_models(folder: Path, data_home: Path):
    change(folder, "config.json", model_type="bert")
    with pytest.raises(ModelError, match="is of model_type 'bert', expected one of 'altclip', "):
        Checkpoint(ModelFiles(name="x", path=folder))
    change(folder, "config.json", model_type="metaclip_2")
    entry = find_encoder("clip-vit-b-32")
    shutil.copytree(folder, data_home / "models" / "clip-vit-base-patch32")
    with pytest.raises(ModelError, match="is of family 'metaclip2', expected 'clip'"):
        Checkpoint(ModelFiles(name="x", entry=entry))


def test_load_encoder_refuses_invalid_configuration(folder: Path):
    change(folder, "config.json", text_config={"hidden_size": "wide"})
    with pytest.raises(ModelError, match=r"config\.json is no configuration of CLIP: "):
        load_encoder(folder).encode_texts(["cat"])
    change(folder, "config.json", vision_config={"image_size": "large"})
    with pytest.raises(ModelError, match=r"config\.json: unsupported vision_config\.image_size: 'large'"):
        load_encoder(folder)


def test_load_encoder_refuses_configuration_with_other_shapes(folder: Path):
    settings = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder, "config.json", text_config={**settings, "intermediate_size": 63})
    with pytest.raises(ModelError, match=r"fc1\.weight is F32 \[64, 32\], expected F32 \[63, 32\]"):
        load_encoder(folder).encode_texts(["cat"])


def test_load_encoder_refuses_tokenizer_of_another_model(folder: Path):
    settings = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder, "config.json", text_config={**settings, "vocab_size": 30})
    with pytest.raises(ModelError, match="has 65 tokens, the model knows 30; it is of another model"):
        load_encoder(folder).encode_texts(["cat"])
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**data, "post_processor": None}))
    change(folder, "config.json", text_config=settings)
    with pytest.raises(
        ModelError, match=r"does not end a text with '<\|endoftext\|>'; it is of another model"
    ):
        load_encoder(folder).encode_texts(["cat"])
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="has no tokenizer that can be read: "):
        load_encoder(folder).encode_texts(["cat"])


def test_load_encoder_reads_shards(saved: Path, folder: Path):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    split, whole = load_encoder(folder), load_encoder(saved)
    assert np.array_equal(split.encode_texts(TEXTS), whole.encode_texts(TEXTS))
    assert np.array_equal(split.encode_images(sample_images()), whole.encode_images(sample_images()))
    assert split.info.parameters == whole.info.parameters
    assert len(split.info.weights_sha256) == 64


@pytest.mark.parametrize("row", baseline_entries(), ids=lambda row: row.name)
def test_load_encoder_offline_says_what_to_download(
    row: EncoderEntry, data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError) as caught:
        load_encoder(row.name)
    message = "\n".join([str(caught.value), *caught.value.__notes__])
    home = data_home / "models" / row.repository.rpartition("/")[2]
    assert message.count("\n") == 4
    assert message.startswith(f"{row.name} is not on this machine and could not be downloaded: ")
    assert f"looked in: {home} and the " in message
    assert str(tmp_path / "cache") in message
    revision = row.revision if len(row.revision) == 40 else "main"
    assert f"hf download {row.repository} --revision {revision} --include " in message
    assert f" from {row.repository}" in message
    assert all(f"--include '{file}'" in message for names in row.files for file in names.split("|"))
    assert "HF_ENDPOINT" in message
    assert "nano" not in message


def test_load_encoder_uses_the_hub_cache(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Laid out as the hub's client does: links to files that are called by their hash."""
    row = find_encoder("clip-vit-b-32")
    assert row is not None
    cache = tmp_path / "cache"
    model = cache / "models--openai--clip-vit-base-patch32"
    snapshot = model / "snapshots" / row.revision
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for file in saved.iterdir():
        blob = "ab" * 32 if file.name == "model.safetensors" else file.name
        shutil.copy(file, model / "blobs" / blob)
        (snapshot / file.name).symlink_to(model / "blobs" / blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    encoder = load_encoder("clip-vit-b-32")
    assert np.array_equal(encoder.encode_texts(TEXTS), load_encoder(saved).encode_texts(TEXTS))
    assert encoder.info.name == "clip-vit-b-32"
    assert encoder.info.weights_sha256 == "ab" * 32
    assert (encoder.info.languages, encoder.info.licence) == (("en",), "MIT")
    # A file of it is missing: the message says which.
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(
        ModelError, match=r"clip-vit-b-32 is not on this machine.*\nneeded: .*tokenizer\.json"
    ):
        load_encoder("clip-vit-b-32")
