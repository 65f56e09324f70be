import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.encoders.layers.llama import BidirectionalLlama, LlamaConfig
from llm2clip.encoders.layers.nano_vision import NanoVisionConfig, NanoVisionTower
from llm2clip.encoders.layers.text_adapter import AdapterConfig, TextAdapter
from llm2clip.encoders.llm2clip.encoder_folder import Llm2ClipConfig
from llm2clip.encoders.llm2clip.save_load import save_llm2clip
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.eval.nano_report.ablation import without_blocks

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
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
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


def test_without_its_blocks_an_encoder_is_blind_to_word_order(folder, tmp_path):
    from llm2clip.encoders import load_encoder

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


def test_the_bare_vectors_are_those_of_a_bag_of_tokens(folder, tmp_path):
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


def test_an_encoder_without_blocks_is_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    save_file({"visual_projection.weight": weights["visual_projection.weight"]}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"no tensor ending in \.self_attn.*--no-blocks"):
        without_blocks(folder, tmp_path / "bare")
