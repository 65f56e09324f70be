"""Every family of two-tower models against its own model, image processor and tokenizer in transformers.

Tiny, random, saved by transformers as the published ones are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llm2clip.encoders import ModelError, TextTooLongWarning, load_encoder
from llm2clip.encoders.baselines.hf_dual import Checkpoint
from llm2clip.encoders.baselines.hf_families import FAMILIES
from llm2clip.encoders.catalog.hub import ModelFiles
from llm2clip.encoders.core.dual_encoder import DualEncoder

TEXTS = {
    "clip": ["a red bicycle", "cat", "Two Dogs, ball!", "Ein Hund"],
    "siglip": ["a red bicycle", "cat", "two dogs ball", "ein hund"],
    "siglip2": ["a red bicycle", "cat", "Two Dogs, ball!", "Ein Hund"],
    "metaclip2": ["a red bicycle", "Cat", "two dogs, ball!", "ein Hund"],
    "chinese-clip": ["雨中的红色自行车", "猫", "“两只狗”,一个球", "a Red CAT"],
    "altclip": ["a red bicycle", "猫", "two dogs, ball!", "ein Hund"],
}
LETTERS = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.!"雨中的红色自行车猫两只狗一个球'
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**LAYERS, "image_size": 28, "patch_size": 14}


@dataclass(frozen=True)
class Reference:
    """What transformers has of a family."""

    folder: Path
    model: Any
    images: Any
    tokenizer: Any


def unit(vectors: torch.Tensor) -> NDArray[np.float32]:
    return torch.nn.functional.normalize(vectors.detach(), dim=-1).numpy()


def sample_images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in ((28, 28), (40, 31), (31, 57), (100, 29))
    ]


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    symbols = sorted(set("abcdefghijklmnopqrstuvwxyz,!."))
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("r", "e"), ("re", "d</w>")]
    words = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=20)


def siglip_tokenizer() -> Any:
    """As the published ``tokenizer.json``: pieces, an end token, no begin token; transformers' own class needs
    sentencepiece, so the plain one stands for it, and gets texts that need no cleaning."""
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), ("▁", -2.0), ("▁cat", -1.0), ("▁red", -1.0)]
    pieces += [(letter, -3.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>", model_max_length=20
    )


def siglip2_tokenizer() -> Any:
    from transformers import Siglip2Tokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, "ca", "cat"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Siglip2Tokenizer(
        vocab=vocabulary, merges=[("c", "a"), ("ca", "t")], padding_side="right", model_max_length=20
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer


def xlm_tokenizer() -> Any:
    from transformers import XLMRobertaTokenizer

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), ("▁", -2.0), ("▁cat", -1.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=pieces, model_max_length=20)


def bert_tokenizer() -> Any:
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", *LETTERS, *("##" + x for x in LETTERS[:26])]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=20)


def build(family: str) -> tuple[Any, Any, Any]:
    """Model, image processor and tokenizer."""
    import transformers

    if family in ("siglip", "siglip2"):
        tokenizer = siglip_tokenizer() if family == "siglip" else siglip2_tokenizer()
        text = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 20}
        ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": tokenizer.pad_token_id}
        config = transformers.SiglipConfig(text_config={**text, **ends}, vision_config=VISION)
        resample = {"siglip": 3, "siglip2": 2}[family]
        images = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28}, resample=resample)
        return transformers.SiglipModel(config), images, tokenizer
    crop = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    if family == "chinese-clip":
        tokenizer = bert_tokenizer()
        text = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
        config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
        square = {"size": {"height": 28, "width": 28}, "do_center_crop": False}
        images = transformers.ChineseCLIPImageProcessorPil(**square)
        return transformers.ChineseCLIPModel(config), images, tokenizer
    if family == "altclip":
        tokenizer = xlm_tokenizer()
        text = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 100, "project_dim": 20}
        config = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
        return transformers.AltCLIPModel(config), transformers.CLIPImageProcessorPil(**crop), tokenizer
    tokenizer = clip_tokenizer() if family == "clip" else xlm_tokenizer()
    text = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 20}
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    name = {"clip": "CLIP", "metaclip2": "MetaClip2"}[family]
    kind = getattr(transformers, f"{name}Config")
    config = kind(text_config={**text, **ends}, vision_config=VISION, projection_dim=24)
    return (
        getattr(transformers, f"{name}Model")(config),
        transformers.CLIPImageProcessorPil(**crop),
        tokenizer,
    )


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """Every family, saved."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    found = {}
    for family in FAMILIES:
        torch.manual_seed(0)
        model, images, tokenizer = build(family)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path_factory.mktemp(family)
        for part in (model, images, tokenizer):
            part.save_pretrained(folder)
        found[family] = Reference(folder, model.eval(), images, tokenizer)
    return found


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def options(family: str) -> dict[str, Any]:
    """What the tokenizer is called with beyond padding and cutting at the longest the tower takes."""
    if family in ("siglip", "siglip2"):
        return {"padding": "max_length", "max_length": 20}
    return {"max_length": {"chinese-clip": 52, "altclip": 77}.get(family, 20)}


def theirs(reference: Reference, family: str, texts: list[str]) -> NDArray[np.float32]:
    called = {"padding": True, "truncation": True, "return_tensors": "pt", **options(family)}
    if family == "chinese-clip":
        texts = [text.lower().replace("“", '"').replace("”", '"') for text in texts]
    tokens = reference.tokenizer(texts, **called)
    if family in ("siglip", "siglip2"):
        tokens = {"input_ids": tokens["input_ids"]}
    return unit(reference.model.get_text_features(**tokens).pooler_output)


def test_encode_images_equals_transformers(family: str, references: dict[str, Reference]):
    reference = references[family]
    pixels = reference.images(images=sample_images(), return_tensors="pt")
    vectors = unit(reference.model.get_image_features(**pixels).pooler_output)
    ours = load_encoder(reference.folder).encode_images(sample_images(), batch_size=3)
    assert ours.shape == vectors.shape
    np.testing.assert_allclose(ours, vectors, atol=1e-5, rtol=1e-4)
    assert np.linalg.matrix_rank(ours) == 4


def test_prepare_equals_transformers(family: str, references: dict[str, Reference]):
    reference = references[family]
    rng = np.random.default_rng(1)
    sizes = rng.integers(5, 120, (40, 2))
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    pixels = reference.images(images=images, return_tensors="pt")["pixel_values"]
    encoder = load_encoder(reference.folder)
    assert isinstance(encoder, DualEncoder)
    ours = encoder.image_tower.normalised(np.stack([encoder.prepare(image).pixels for image in images]))
    one_level = 1 / 255 / min(encoder.image_tower.preprocess.std)
    assert float((ours - pixels).abs().max()) <= one_level * 1.001


def test_encode_texts_equals_transformers(family: str, references: dict[str, Reference]):
    reference = references[family]
    ours = load_encoder(reference.folder).encode_texts(TEXTS[family], batch_size=3)
    np.testing.assert_allclose(ours, theirs(reference, family, TEXTS[family]), atol=1e-5, rtol=1e-4)
    assert np.linalg.matrix_rank(ours) == 4


def test_encode_texts_cuts_like_transformers(family: str, references: dict[str, Reference]):
    reference = references[family]
    text = " ".join(["a red ball and"] * 12)
    encoder = load_encoder(reference.folder)
    limit = encoder.info.max_text_tokens
    assert limit == options(family)["max_length"]
    (count,) = encoder.count_tokens([text])
    assert count == len(reference.tokenizer(text, verbose=False)["input_ids"]) > limit
    with pytest.warns(TextTooLongWarning, match=f"only the first {limit} of {count} tokens were read"):
        ours = encoder.encode_texts([text])
    np.testing.assert_allclose(ours, theirs(reference, family, [text]), atol=1e-5, rtol=1e-4)


def test_info_of_each_family(family: str, references: dict[str, Reference]):
    reference = references[family]
    info = load_encoder(reference.folder).info
    weights = sum(parameter.numel() for parameter in reference.model.parameters())
    assert (info.family, info.image_size, info.parameters) == (family, 28, weights)
    assert info.dim == (32 if family.startswith("siglip") else 24)
    modes = {"siglip": "squash/bicubic-28/mean.5std.5", "siglip2": "squash/bilinear-28/mean.5std.5"}
    start = "squash/bicubic-28/mean.481" if family == "chinese-clip" else "shortest-crop/bicubic-28/mean.481"
    assert info.preprocessing.startswith("rgb-on-white/" + modes.get(family, start))
    weights_file = reference.folder / "model.safetensors"
    assert info.weights_sha256 == hashlib.sha256(weights_file.read_bytes()).hexdigest()


def test_checkpoint_places_every_tensor(family: str, references: dict[str, Reference]):
    """Every tensor of the published layout has its place in one of the sides, or is known to be of no use."""
    checkpoint = Checkpoint(ModelFiles(name=family, path=references[family].folder))
    place = torch.device("cpu")
    text = checkpoint.load_text(dtype=torch.float32, device=place).state_dict()
    vision = checkpoint.load_vision(dtype=torch.float32, device=place).state_dict()
    stored = load_file(references[family].folder / "model.safetensors")
    unused = {"logit_scale", "logit_bias"} & set(stored)
    assert len(text) + len(vision) + len(unused) == len(stored)
    same = dict(references[family].model.state_dict())
    for name, tensor in {**text, **vision}.items():
        assert torch.equal(tensor, same[name]), name


@pytest.mark.parametrize("family", ["clip", "metaclip2"])
def test_reader_refuses_tokenizer_with_another_end(
    family: str, references: dict[str, Reference], tmp_path: Path
):
    folder = Path(shutil.copytree(references[family].folder, tmp_path / "mine"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"eos_token_id is 7, but '.*' is \d+ in its tokenizer"):
        load_encoder(folder).encode_texts(["cat"])


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_reader_adds_the_end_token_of_siglip(family: str, references: dict[str, Reference], tmp_path: Path):
    folder = Path(shutil.copytree(references[family].folder, tmp_path / "mine"))
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**data, "post_processor": None}))
    expected = load_encoder(references[family].folder).encode_texts(TEXTS[family])
    assert np.array_equal(load_encoder(folder).encode_texts(TEXTS[family]), expected)


def test_reader_cleans_texts_for_siglip(references: dict[str, Reference]):
    """transformers' plain tokenizer gets what its SigLIP tokenizer would have made of these texts."""
    reference = references["siglip"]
    ours = load_encoder(reference.folder).encode_texts(["A Red, CAT!", "  two\tdogs."])
    expected = theirs(reference, "siglip", ["a red cat", "two dogs"])
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-4)


def test_load_tokenizer_reads_vocabulary_of_chinese_clip(references: dict[str, Reference], tmp_path: Path):
    reference = references["chinese-clip"]
    folder = Path(shutil.copytree(reference.folder, tmp_path / "mine"))
    words = sorted(reference.tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    texts = TEXTS["chinese-clip"]
    assert np.array_equal(
        load_encoder(folder).encode_texts(texts), load_encoder(reference.folder).encode_texts(texts)
    )


def test_load_dual_reads_spelling_of_altclip(references: dict[str, Reference], tmp_path: Path):
    reference = references["altclip"]
    folder = Path(shutil.copytree(reference.folder, tmp_path / "mine"))
    tensors = load_file(folder / "model.safetensors")
    published = {
        name if name.startswith("text_") else name.replace("encoder.layer.", "encoder.layers."): tensor
        for name, tensor in tensors.items()
    }
    assert published.keys() != tensors.keys()
    published["text_model.roberta.embeddings.position_ids"] = torch.arange(100)[None]
    save_file(published, folder / "model.safetensors")
    ours, same = load_encoder(folder), load_encoder(reference.folder)
    assert np.array_equal(ours.encode_images(sample_images()), same.encode_images(sample_images()))
    assert np.array_equal(ours.encode_texts(TEXTS["altclip"]), same.encode_texts(TEXTS["altclip"]))
    assert ours.info.parameters == same.info.parameters
