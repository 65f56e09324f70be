"""Models of sentence-transformers as encoders, against that library's own ``encode``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import ModelError, load_encoder
from llm2clip.encoders.baselines.sentence_transformer import model_settings
from llm2clip.indexer import build_index, open_index

from .test_families import Reference, sample_images

TEXTS = ["a red ball", "cat", "two dogs"]
PROMPTS = {"query": "find ", "document": "see "}


@pytest.fixture(scope="module")
def saved(references: dict[str, Reference], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny CLIP as a model of sentence-transformers, with prompts, and where it is saved."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("st")
    sentences = SentenceTransformer(str(references["clip"].folder), device="cpu", prompts=PROMPTS)
    sentences.save_pretrained(str(folder))
    return folder, sentences


def images() -> list[Image.Image]:
    return sample_images()[:3]


def test_load_sentence_encodes_texts_as_queries(saved: tuple[Path, Any]):
    folder, model = saved
    ours = load_encoder(f"st:{folder}").encode_texts(TEXTS, batch_size=2)
    np.testing.assert_allclose(
        ours, model.encode_query(TEXTS, normalize_embeddings=True), atol=1e-5, rtol=1e-4
    )
    assert not np.allclose(ours, model.encode(TEXTS, normalize_embeddings=True), atol=1e-3)


def test_load_sentence_encodes_images_as_documents(saved: tuple[Path, Any]):
    folder, model = saved
    ours = load_encoder(f"st:{folder}").encode_images(images(), batch_size=2)
    theirs = model.encode_document(images(), normalize_embeddings=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4)
    assert np.linalg.matrix_rank(ours) == 3


def test_load_sentence_info(saved: tuple[Path, Any]):
    folder, model = saved
    encoder = load_encoder(f"st:{folder}")
    info = encoder.info
    assert (info.name, info.family, info.dim) == (f"st:{folder}", "sentence-transformers", 24)
    assert (info.image_size, info.max_text_tokens) == (0, 20)
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(info.weights_sha256) == 64
    assert encoder.count_tokens(["ball"]) == [6]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1024, 1023), (300, 40)])
def test_prepare_keeps_images_that_fit(saved: tuple[Path, Any], width: int, height: int):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))
    prepared = load_encoder(f"st:{saved[0]}").prepare(image)
    assert np.array_equal(prepared.pixels, np.asarray(image))


@pytest.mark.parametrize(("width", "height"), [(4096, 2048), (100, 3072), (1024, 1024)])
def test_prepare_reduces_large_images(saved: tuple[Path, Any], width: int, height: int):
    prepared = load_encoder(f"st:{saved[0]}").prepare(Image.new("RGB", (width, height), (9, 8, 7)))
    rows, columns, _ = prepared.pixels.shape
    assert max(columns / 1024, rows / 1023) == pytest.approx(1, abs=0.002)
    assert columns / rows == pytest.approx(width / height, rel=0.05)
    assert prepared.pixels[0, 0].tolist() == [9, 8, 7]
    assert (prepared.width, prepared.height) == (width, height)


def test_build_index_takes_images_of_different_sizes(saved: tuple[Path, Any], tmp_path: Path):
    encoder = load_encoder(f"st:{saved[0]}")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images()):
        image.save(tmp_path / "photos" / f"{number}.png")
    build_index(tmp_path / "photos", tmp_path / "index", encoder=encoder)
    with open_index(tmp_path / "index") as index:
        found = index.search(encoder.encode_images(images()), k=1)
    assert [hits[0].key for hits in found] == ["0.png", "1.png", "2.png"]


def test_load_sentence_refuses_text_only_models(tmp_path: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=6, **sizes)).save_pretrained(tmp_path / "bert")
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    modules = [Transformer(str(tmp_path / "bert")), Pooling(8)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "st"))
    with pytest.raises(ModelError, match=r"does not read image; it reads \['text'\]"):
        load_encoder(f"st:{tmp_path / 'st'}").encode_texts(["cat"])


@pytest.mark.parametrize("place", ["modules.json", "0_Router/router_config.json"])
def test_load_sentence_runs_no_code_of_a_model(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "evil.py").write_text("open('ran', 'w')\nclass Module: pass\n")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    if place == "modules.json":
        path.write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]))
    else:
        path.write_text(
            json.dumps({"types": {"query_0": "evil.Module"}, "structure": {"query": ["query_0"]}})
        )
    with pytest.raises(ModelError, match=r"requires code of its own \(evil\.Module\); none is run here"):
        load_encoder(f"st:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_load_sentence_names_other_folders(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ModelError, match="cannot be loaded by sentence-transformers: "):
        load_encoder(f"st:{tmp_path}").encode_texts(["cat"])
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(ModelError, match=r"modules\.json cannot be read"):
        load_encoder(f"st:{tmp_path}")


@pytest.mark.parametrize("place", ["..", "/etc", "0_Link"])
def test_load_sentence_refuses_modules_outside_the_folder(place: str, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "0_Link").symlink_to(tmp_path / "elsewhere")
    module = {"idx": 0, "name": "0", "path": place, "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(
        ModelError, match=r"model/.* is a link that leads out of its folder, to |^/etc is a link"
    ):
        load_encoder(f"st:{folder}")


def test_model_settings_names_unreadable_files(tmp_path: Path):
    (tmp_path / "prompts.json").write_text("{")
    with pytest.raises(ModelError, match=r"prompts\.json cannot be read: Expecting"):
        model_settings(tmp_path)


def test_load_sentence_says_how_to_download(data_home: Path):
    with pytest.raises(ModelError) as caught:
        load_encoder("st:Qwen/Qwen3-VL-Embedding-2B")
    message = "\n".join([str(caught.value), *caught.value.__notes__])
    assert message.startswith("st:Qwen/Qwen3-VL-Embedding-2B is not on this machine and could not ")
    assert str(data_home / "models" / "Qwen3-VL-Embedding-2B") in message
    assert "hf download Qwen/Qwen3-VL-Embedding-2B" in message
    for name in ("st:", "st:./nowhere", f"st:{data_home / 'nowhere'}"):
        with pytest.raises(ModelError, match="no such folder"):
            load_encoder(name)
