import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from llm2clip.encoders import load_encoder
from llm2clip.encoders.baselines.hf_families import FAMILIES as HF_FAMILIES
from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.encoders.layers.llama import AdapterConfig, BidirectionalLlama, LlamaConfig, TextAdapter
from llm2clip.encoders.layers.nano_vision import NanoVisionConfig, NanoVisionTower
from llm2clip.encoders.llm2clip.encoder_folder import Llm2ClipConfig
from llm2clip.encoders.llm2clip.save_load import save_llm2clip
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.eval.nano_report.controls import FAMILIES, make_random, without_blocks

WORDS = ["<pad>", "<unk>", "red", "green", "blue", "left", "right"]


@pytest.fixture
def folder(tmp_path):
    """A saved encoder with random weights of a size that makes its blocks matter."""
    torch.manual_seed(5)
    config = Llm2ClipConfig(
        name="tiny",
        note="random",
        licence="MIT",
        languages=("en",),
        vision=NanoVisionConfig(image_size=16, widths=(8, 8, 16), blocks=(1, 1, 1), layers=1, heads=2),
        text=LlamaConfig(
            **{"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "head_dim": 8},
            **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 2),
        ),
        adapter=AdapterConfig(width=16, dim=12, blocks=1),
        preprocessing=Preprocess(size=16, mode=ResizeMode.PAD_SQUARE),
        text_rules=TextRules(max_tokens=32),
        dtype="float32",
    )
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    vision, language = NanoVisionTower(config.vision), BidirectionalLlama(config.text)
    for module in language.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.5)
    save_llm2clip(
        tmp_path / "tiny",
        config=config,
        vision=vision,
        projection=torch.nn.Linear(vision.width, 12, bias=False),
        language_model=language,
        adapter=TextAdapter(16, 12, blocks=1),
        logit_scale=1.0,
        tokenizer_json=tokenizer.to_str(),
    )
    return tmp_path / "tiny"


def test_without_blocks_is_blind_to_word_order(folder, tmp_path):
    orders = ["red left blue right", "blue left red right", "right blue left red"]
    whole = load_encoder(folder)
    before = whole.encode_texts(orders)
    assert np.abs(before[0] - before[1:]).max(axis=1).min() > 1e-2
    bare = without_blocks(folder, tmp_path / "bare")
    after = bare.encode_texts(orders)
    np.testing.assert_allclose(after[1:], after[:1].repeat(2, axis=0), atol=1e-5)
    assert np.abs(before[0] - after[0]).max() > 1e-2
    # Only the blocks went: images are seen as before, and the original folder is untouched.
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    np.testing.assert_array_equal(bare.encode_images([image]), whole.encode_images([image]))
    np.testing.assert_array_equal(load_encoder(folder).encode_texts(orders), before)


def test_without_blocks_gives_vectors_of_a_bag_of_tokens(folder, tmp_path):
    """The same from the weights by hand: mean of normed token embeddings, then the adapter."""
    bare = without_blocks(folder, tmp_path / "bare")
    weights = load_file(folder / "model.safetensors")
    embedded = weights["language_model.embed_tokens.weight"][[2, 5]]
    normed = embedded * torch.rsqrt(embedded.pow(2).mean(-1, keepdim=True) + 1e-5)
    pooled = (normed * weights["language_model.norm.weight"]).mean(0, keepdim=True)
    adapter = TextAdapter(16, 12, blocks=1)
    prefix = "text_adapter."
    own = {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}
    adapter.load_state_dict(own)
    expected = torch.nn.functional.normalize(adapter(pooled), dim=-1).detach().numpy()
    np.testing.assert_allclose(bare.encode_texts(["red left"]), expected, atol=1e-5)


def test_without_blocks_refuses_an_encoder_without_llama_blocks(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    save_file({"visual_projection.weight": weights["visual_projection.weight"]}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"no tensor ending in \.self_attn.*--no-blocks"):
        without_blocks(folder, tmp_path / "bare")


def test_families_has_every_two_tower_family():
    assert set(HF_FAMILIES) <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_make_random_loads_as_its_family(family, tmp_path):
    folder = make_random(family, tmp_path / "one")
    encoder = load_encoder(folder)
    assert encoder.info.family == ("llm2clip" if family == "nano" else family)
    assert encoder.info.parameters > 0
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    images, texts = encoder.encode_images(photos), encoder.encode_texts(["a red car", "猫", "two dogs"])
    for vectors in (images, texts):
        assert np.linalg.matrix_rank(vectors) == 3
    alike = encoder.encode_texts(["a red car on a road", "a red car in a wood"])
    assert np.abs(alike[0] - alike[1]).max() > 1e-4  # texts are read to their ends
    before = (folder / "random.json").stat().st_mtime_ns
    make_random(family, folder)
    assert (folder / "random.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("family", ["clip", "siglip2"])
def test_make_random_one_seed_is_one_encoder(family, tmp_path):
    one, same, other = (
        load_encoder(make_random(family, tmp_path / str(number), seed=seed))
        for number, seed in enumerate((0, 0, 1))
    )
    assert one.info.weights_sha256 == same.info.weights_sha256 != other.info.weights_sha256
    np.testing.assert_array_equal(one.encode_texts(["a cat"]), same.encode_texts(["a cat"]))


def test_make_random_shuffles_nano(tmp_path):
    random, nano = load_encoder(make_random("nano", tmp_path / "one")).info, load_encoder("nano").info
    assert (random.name, random.parameters) == ("random-nano", nano.parameters)
    assert random.weights_sha256 != nano.weights_sha256


def test_make_random_refuses_unknown_families_and_other_folders(tmp_path):
    with pytest.raises(ValueError, match=r"no random encoder of family 'wukong', expected one of nano, clip"):
        make_random("wukong", tmp_path)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no random encoder; name another folder"):
        make_random("clip", tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_make_random_completes_an_interrupted_folder(tmp_path):
    folder = make_random("clip", tmp_path / "one")
    (folder / "random.json").write_text("null")
    (folder / "model.safetensors").write_bytes(b"cut")
    assert load_encoder(make_random("clip", folder)).info.dim == 48
