"""The table of baselines: every line against the architecture it is about, built without memory."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from llm2clip.encoders import list_encoders
from llm2clip.encoders.catalog.entries import EncoderEntry, baseline_entries, find_encoder
from llm2clip.encoders.layers.eva02 import Eva02Config, Eva02Tower

ROWS = {row.name: row for row in baseline_entries()}

# Width, layers and heads of a tower.
S, B, L, SO, H, G = (
    (512, 12, 8),
    (768, 12, 12),
    (1024, 24, 16),
    (1152, 27, 16),
    (1280, 32, 16),
    (1536, 40, 16),
)
LT = (768, 12, 12)
"""Text tower beside CLIP's ViT-L/14."""


def sizes(tower: tuple[int, int, int]) -> dict[str, int]:
    width, layers, heads = tower
    inner = 4304 if width == 1152 else 4 * width
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }


def vision(tower: tuple[int, int, int], row: EncoderEntry) -> dict[str, int]:
    patch = {32: 32, 16: 16, 14: 14}[int(re.findall(r"-(32|16|14)\b", row.name.replace("s-16", "-16"))[0])]
    return {**sizes(tower), "image_size": row.image_size, "patch_size": patch}


def clip(row: EncoderEntry, *, vocabulary: int = 49408) -> Any:
    import transformers

    name = "MetaClip2" if row.family == "metaclip2" else "CLIP"
    seen, read = {32: (B, S), 16: (B, S), 14: (L, LT)}[
        32 if "-32" in row.name else 16 if "-16" in row.name else 14
    ]
    if "-h-" in row.name:
        seen, read = H, L
    config = getattr(transformers, f"{name}Config")(
        text_config={**sizes(read), "vocab_size": vocabulary},
        vision_config=vision(seen, row),
        projection_dim=row.dim,
    )
    return getattr(transformers, f"{name}Model")(config)


def siglip(row: EncoderEntry) -> Any:
    from transformers import SiglipConfig, SiglipModel

    kind = {"b": B, "l": L, "so400m": SO, "g": G}[row.name.split("-")[1]]
    words = 256_000 if row.family == "siglip2" else 250_000 if "i18n" in row.name else 32_000
    text: dict[str, Any] = {**sizes(SO if kind is G else kind), "vocab_size": words}
    ends = {"bos_token_id": None, "eos_token_id": None, "projection_size": row.dim}
    text |= {**ends, "max_position_embeddings": row.max_text_tokens}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision(kind, row)))


def chinese(row: EncoderEntry) -> Any:
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    seen, read = {"b": (B, B), "l": (L, B), "h": (H, L)}[row.name.split("-")[2]]
    text = {**sizes(read), "vocab_size": 21128}
    config = ChineseCLIPConfig(text_config=text, vision_config=vision(seen, row), projection_dim=row.dim)
    return ChineseCLIPModel(config)


def altclip(row: EncoderEntry) -> Any:
    from transformers import AltCLIPConfig, AltCLIPModel

    images = {**sizes(L), "image_size": row.image_size, "patch_size": 14}
    return AltCLIPModel(AltCLIPConfig(text_config={}, vision_config=images, projection_dim=row.dim))


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def eva02(row: EncoderEntry) -> int:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    small = row.name == "eva02-clip-b-16"
    width, depth, heads = B if small else L
    tower = Eva02Tower(
        Eva02Config(
            image_size=row.image_size,
            patch_size=16 if small else 14,
            width=width,
            depth=depth,
            heads=heads,
            hidden=int(width * 2.6667),
            dim=row.dim,
        )
    )
    text = CLIPTextConfig(**sizes(S if small else LT), vocab_size=49408, projection_dim=row.dim)
    return count(tower) + count(CLIPTextModelWithProjection(text)) + 1


def expected(row: EncoderEntry) -> int:
    """Trained numbers of the architecture."""
    import transformers

    if row.family == "clip":
        return count(clip(row))
    if row.family == "metaclip2":
        return count(clip(row, vocabulary=901_629))
    if row.family in ("siglip", "siglip2"):
        return count(siglip(row))
    if row.family == "chinese-clip":
        return count(chinese(row))
    if row.family == "altclip":
        return count(altclip(row))
    if row.family == "eva02-clip":
        return eva02(row)
    beside = find_encoder(row.beside)
    assert beside is not None
    model = clip(beside)
    if row.family == "long-clip":  # two tables of 248 positions instead of one of 77
        return count(model) + (2 * 248 - 77) * model.config.text_config.hidden_size
    images = count(model.vision_model) + count(model.visual_projection)
    if "distil" in row.name:
        text = transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=119_547))
        return images + count(text) + 768 * row.dim
    if "labse" in row.name:
        bert = transformers.BertModel(transformers.BertConfig(vocab_size=501_153))
        return images + count(bert) + (768 + 1) * row.dim
    config = transformers.XLMRobertaConfig(
        **sizes(L), vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1
    )
    return images + count(transformers.XLMRobertaModel(config)) + (1024 + 1) * row.dim


@pytest.mark.parametrize("name", ROWS)
def test_baseline_entries_parameters_equal_the_architecture(name: str):
    with torch.device("meta"):
        assert expected(ROWS[name]) == ROWS[name].parameters


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_baseline_entries_are_complete(row: EncoderEntry):
    assert row.files
    assert row.languages
    assert row.licence
    assert row.note
    assert re.fullmatch(r"[0-9a-f]{7,40}|", row.revision)
    assert bool(row.source) == (row.published != type(row.published)())
    assert bool(row.nearest_setting) == (row.nearest != type(row.nearest)())
    assert not row.weights or row.weights in row.files
    if row.beside:
        beside = find_encoder(row.beside)
        assert beside is not None
        assert beside.family == "clip"
    else:
        assert "config.json" in row.files
    # Beside the weights there are at most a tokenizer of 61 MB and settings.
    each = 2 if row.family == "eva02-clip" else 4
    assert 0 <= row.download_bytes - each * row.parameters < 65_000_000


def test_list_encoders_describes_baselines():
    cards = {card.name: card for card in list_encoders() if not card.name.startswith("llm2clip")}
    assert list(cards) == ["nano", *ROWS]
    del cards["nano"]
    assert cards["clip-vit-b-32"].summary == "OpenAI CLIP ViT-B/32: photographs, en, up to 77 tokens"
    assert cards["clip-vit-b-32"].quality == "Flickr30k R@1 58.8, the fastest"
    assert cards["siglip2-so400m-14-384"].size == "4.6 GB"
    assert cards["chinese-clip-b-16"].quality == "Flickr30k-CN R@1 62.7"
    assert cards["long-clip-b"].download == (
        "BeichenZhang/LongCLIP-B, and the tokenizer of openai/clip-vit-base-patch16, from the Hugging Face hub"
    )
    assert all(card.summary and card.quality and card.download for card in cards.values())
