"""Multilingual CLIP: its text side against transformers' own model with the mean and the linear map done by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from llm2clip.encoders import ModelError, TextTooLongWarning, load_encoder
from llm2clip.encoders.baselines.loaders import load_baseline
from llm2clip.encoders.text.dual_encoder import DualEncoder

LETTERS = "abcdefghijklmnopqrstuvwxyz,!雨中的红色自行车猫"
TEXTS = ["a red bicycle", "猫", "two dogs, one ball!", "ein hund"]
DIM = 24


def clip_folder(folder: Path) -> Path:
    """A tiny CLIP, of which only the vision tower is used."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**layers, "vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49},
        vision_config={**layers, "image_size": 28, "patch_size": 14},
        projection_dim=DIM,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    crop = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessorPil(**crop).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def language_model(kind: str) -> tuple[Any, Any]:
    """A model and its tokenizer, tiny."""
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    if kind == "labse":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + x for x in LETTERS[:26])]
        tokenizer = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=30, **sizes)
        return transformers.BertModel(config), tokenizer
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [("<mask>", 0.0)]
    config = transformers.XLMRobertaConfig(
        vocab_size=len(pieces), max_position_embeddings=32, type_vocab_size=1, layer_norm_eps=1e-5, **sizes
    )
    return transformers.XLMRobertaModel(config), transformers.XLMRobertaTokenizer(vocab=pieces)


BASES = {"xlm-roberta": "xlm-roberta-large", "labse": "sentence-transformers/LaBSE"}


@pytest.fixture(scope="module", params=list(BASES))
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, Any, Any]:
    """As published: a pickle with the pooler and the counters of an old release, and settings of one line."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    model, tokenizer = language_model(request.param)
    linear = torch.nn.Linear(64, DIM)
    for parameter in (*model.parameters(), *linear.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    state = {f"transformer.{name}": tensor for name, tensor in model.state_dict().items()}
    state["transformer.embeddings.position_ids"] = torch.arange(32)[None]
    state |= {f"LinearTransformation.{name}": tensor for name, tensor in linear.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"modelBase": BASES[request.param], "numDims": DIM}))
    tokenizer.save_pretrained(folder)
    clip_folder(folder / "vision")
    return folder, model.eval(), linear.eval(), tokenizer


def unit(vectors: torch.Tensor) -> NDArray[np.float32]:
    return torch.nn.functional.normalize(vectors.detach(), dim=-1).numpy()


def theirs(
    model: Any, linear: Any, tokenizer: Any, texts: list[str], length: int = 30
) -> NDArray[np.float32]:
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    states, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
    return unit(linear((states * mask).sum(1) / mask.sum(1)))


def test_texts_are_those_of_the_original(saved: tuple[Path, Any, Any, Any]):
    folder, *parts = saved
    ours = load_encoder(folder).encode_texts(TEXTS, batch_size=3)
    np.testing.assert_allclose(ours, theirs(*parts, TEXTS), atol=1e-5, rtol=1e-4)
    assert np.linalg.matrix_rank(ours) == 4


def test_long_texts_are_cut_where_the_positions_end(saved: tuple[Path, Any, Any, Any]):
    folder, *parts = saved
    text = "two dogs " * 9
    with pytest.warns(TextTooLongWarning, match="only the first 30 of"):
        ours = load_encoder(folder).encode_texts([text])
    np.testing.assert_allclose(ours, theirs(*parts, [text]), atol=1e-5, rtol=1e-4)


def test_images_are_those_of_clip(saved: tuple[Path, Any, Any, Any]):
    from transformers import CLIPImageProcessorPil, CLIPModel

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    vision = saved[0] / "vision"
    pixels = CLIPImageProcessorPil.from_pretrained(vision)(images=[image], return_tensors="pt")
    vectors = unit(CLIPModel.from_pretrained(vision).eval().get_image_features(**pixels).pooler_output)
    np.testing.assert_allclose(load_encoder(saved[0]).encode_images([image]), vectors, atol=1e-5, rtol=1e-4)


def test_what_it_says_of_itself(saved: tuple[Path, Any, Any, Any]):
    folder, model, linear, _ = saved
    encoder = load_encoder(folder)
    info = encoder.info
    assert (info.family, info.dim, info.image_size, info.max_text_tokens) == ("m-clip", DIM, 28, 30)
    texts = sum(parameter.numel() for part in (model, linear) for parameter in part.parameters())
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(folder / "vision")
    sides = (clip.vision_model, clip.visual_projection)
    assert info.parameters == texts + sum(p.numel() for side in sides for p in side.parameters())
    assert isinstance(encoder, DualEncoder)
    assert encoder.loaded_sides == frozenset()
    encoder.encode_texts(["cat"])
    assert encoder.loaded_sides == {"text"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_arithmetic_in_half_precision_is_close(saved: tuple[Path, Any, Any, Any], dtype: str):
    half, whole = load_encoder(saved[0], dtype=dtype), load_encoder(saved[0])
    assert (half.encode_texts(TEXTS) * whole.encode_texts(TEXTS)).sum(1).min() >= 0.999


def test_files_that_are_wrong(saved: tuple[Path, Any, Any, Any], tmp_path: Path):
    folder = Path(shutil.copytree(saved[0], tmp_path / "mine"))
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**state, "stray": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="unexpected tensors: stray"):
        load_encoder(folder).encode_texts(["cat"])
    linear = {"LinearTransformation.weight": torch.zeros(8, 64), "LinearTransformation.bias": torch.zeros(8)}
    torch.save({**state, **linear}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"gives vectors of 8, .* of 24; they are not of the same model"):
        load_encoder(folder)
    (folder / "config.json").write_text('{"modelBase": "gpt2"}')
    with pytest.raises(ModelError, match="modelBase is 'gpt2', expected one of xlm-roberta, labse"):
        load_encoder(folder)


def test_the_vision_tower_is_that_of_another_encoder(saved: tuple[Path, Any, Any, Any], data_home: Path):
    models = data_home / "models"
    shutil.copytree(saved[0], models / "XLM-Roberta-Large-Vit-B-32")
    shutil.rmtree(models / "XLM-Roberta-Large-Vit-B-32" / "vision")
    with pytest.raises(ModelError, match=r"m-clip-xlm-r-b-32 is not on .* from openai/clip-vit-base-patch32"):
        load_baseline("m-clip-xlm-r-b-32")
    shutil.copytree(saved[0] / "vision", models / "clip-vit-base-patch32")
    encoder = load_baseline("m-clip-xlm-r-b-32")
    assert np.array_equal(encoder.encode_texts(TEXTS), load_encoder(saved[0]).encode_texts(TEXTS))
    (models / "XLM-Roberta-Large-Vit-B-32").rename(models / "mine")
    with pytest.raises(ModelError, match="has no folder vision, which its model needs"):
        load_encoder(models / "mine")


def test_that_of_sentence_transformers(data_home: Path, tmp_path: Path):
    """A DistilBERT, the mean of its states and a linear layer, all saved and computed by that library."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
    from transformers import BertTokenizer, DistilBertConfig, DistilBertModel

    torch.manual_seed(2)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + x for x in LETTERS[:26])]
    config = DistilBertConfig(vocab_size=len(words), dim=32, n_layers=2, n_heads=2, hidden_dim=48)
    DistilBertModel(config).save_pretrained(tmp_path / "distil")
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(tmp_path / "distil")
    transformer = Transformer(str(tmp_path / "distil"))
    dense = Dense(in_features=32, out_features=DIM, bias=False, activation_function=torch.nn.Identity())
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean"), dense], device="cpu")
    model.max_seq_length = 20
    home = data_home / "models" / "clip-ViT-B-32-multilingual-v1"
    model.save_pretrained(str(home))
    clip_folder(data_home / "models" / "clip-vit-base-patch32")
    encoder = load_baseline("m-clip-distil-b-32")
    expected = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS, batch_size=3), expected, atol=1e-5, rtol=1e-4)
    assert isinstance(encoder, DualEncoder)
    assert encoder.loaded_sides == {"text"}
    info = encoder.info
    assert (info.dim, info.max_text_tokens, info.licence) == (DIM, 20, "Apache-2.0")
    assert encoder.count_tokens(["ein hund"]) == [len(model.tokenizer("ein hund")["input_ids"])]


def test_another_tokenizer_is_another_encoder(saved: tuple[Path, Any, Any, Any], tmp_path: Path):
    folder = Path(shutil.copytree(saved[0], tmp_path / "moved"))
    before = load_encoder(saved[0]).info
    assert {**load_encoder(folder).info.identity(), "name": before.name} == before.identity()
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**data, "normalizer": None}))
    assert load_encoder(folder).info.settings_sha256 != before.settings_sha256
