"""The bridge to open_clip, against a stand-in with its interface: the library itself needs torchvision."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.encoders import ModelError, TextTooLongWarning, load_encoder
from llm2clip.encoders.baselines.open_clip_models import read_settings

SETTINGS = {
    "size": (8, 8),
    "mode": "RGB",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


class Model(nn.Module):
    """Two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Linear(3 * 8 * 8, 6)
        self.token_embedding = nn.Embedding(40, 6)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        return self.visual(image.flatten(1))

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        return self.token_embedding(text).mean(1)


class SimpleTokenizer:
    """Letters; 38 begins, 39 ends, 0 fills."""

    context_length = 10

    def encode(self, text: str) -> list[int]:
        return [1 + ord(letter) % 32 for letter in text]

    def __call__(self, texts: list[str]) -> Tensor:
        rows = [[38, *self.encode(text)[: self.context_length - 2], 39] for text in texts]
        return torch.tensor([row + [0] * (self.context_length - len(row)) for row in rows])


class HFTokenizer:
    """As it wraps one of transformers: lower case first."""

    context_length = 10

    def clean_fn(self, text: str) -> str:
        return text.lower().strip()

    def tokenizer(self, texts: list[str], verbose: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) % 32 for letter in text] for text in texts]}

    def __call__(self, texts: list[str]) -> Tensor:
        rows = self.tokenizer([self.clean_fn(text) for text in texts], verbose=False)["input_ids"]
        return torch.tensor([(row + [0] * 10)[:10] for row in rows])


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the installed library."""
    module: Any = ModuleType("open_clip")

    def create_model(name: str, *, pretrained: str | None, require_pretrained: bool) -> Model:
        if name.startswith("hf-hub:"):
            assert pretrained is None
        elif (name, pretrained) not in module.list_pretrained():
            raise RuntimeError(f"Pretrained weights ({pretrained}) not found\nfor model {name}.")
        assert require_pretrained
        return Model()

    module.create_model = create_model
    module.get_model_preprocess_cfg = lambda model: dict(SETTINGS)
    module.get_tokenizer = lambda name: HFTokenizer() if "xlm" in name else SimpleTokenizer()
    module.list_pretrained = lambda: [("ViT-T-8", "tiny_s1b"), ("xlm-T-8", "tiny_s1b")]
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return module


def unit(vectors: Tensor) -> NDArray[np.float32]:
    return nn.functional.normalize(vectors.detach(), dim=-1).numpy()


@pytest.mark.parametrize("name", ["open_clip:ViT-T-8/tiny_s1b", "open_clip:hf-hub:somebody/some-model"])
def test_load_open_clip_equals_the_library(name: str, library: ModuleType):
    encoder = load_encoder(name)
    texts = ["a cat", "dog"]
    np.testing.assert_allclose(
        encoder.encode_texts(texts), unit(Model().encode_text(SimpleTokenizer()(texts))), atol=1e-6
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    normal = (pixels / 255 - np.array(SETTINGS["mean"])) / np.array(SETTINGS["std"])
    expected = Model().encode_image(torch.tensor(normal, dtype=torch.float32).permute(0, 3, 1, 2))
    np.testing.assert_allclose(encoder.encode_images(list(pixels)), unit(expected), atol=1e-6)


def test_info_of_open_clip(library: ModuleType):
    info = load_encoder("open_clip:ViT-T-8/tiny_s1b").info
    assert (info.name, info.family, info.dim) == ("open_clip:ViT-T-8/tiny_s1b", "open_clip", 6)
    assert (info.image_size, info.max_text_tokens) == (8, 10)
    assert info.preprocessing == "rgb-on-white/shortest-crop-half-even/bicubic-8/mean.5,.4,.3std.2,.3,.4"
    assert info.parameters == sum(parameter.numel() for parameter in Model().parameters())
    assert len(info.weights_sha256) == 64
    half = load_encoder("open_clip:ViT-T-8/tiny_s1b", dtype="bfloat16").info
    assert half.identity() == info.identity()


def test_count_tokens_counts_before_cutting(library: ModuleType):
    encoder = load_encoder("open_clip:ViT-T-8/tiny_s1b")
    assert encoder.count_tokens(["cat"]) == [5]
    with pytest.warns(TextTooLongWarning, match="only the first 10 of 14 tokens were read"):
        encoder.encode_texts(["a long text."])
    assert load_encoder("open_clip:xlm-T-8/tiny_s1b").count_tokens(["  Cat  "]) == [3]


def test_load_open_clip_refuses_unknown_names(library: ModuleType):
    with pytest.raises(
        ModelError, match=r"cannot load 'ViT-T-8/tiny': .*; did you mean open_clip:ViT-T-8/tiny_s1b"
    ):
        load_encoder("open_clip:ViT-T-8/tiny")
    for name in ("open_clip:", "open_clip:ViT-T-8", "open_clip:/tiny"):
        with pytest.raises(ModelError, match=r"is incomplete; expected open_clip:MODEL/PRETRAINED"):
            load_encoder(name)


@pytest.mark.parametrize(
    "change", [{"size": (8, 6)}, {"resize_mode": "longest"}, {"interpolation": "random"}], ids=str
)
def test_read_settings_refuses_unknown_preprocessing(change: dict[str, Any]):
    with pytest.raises(ModelError, match="expected a square, made by 'shortest' or 'squash'"):
        read_settings({**SETTINGS, **change}, name="x", parity="native")


def test_read_settings_passes_squash_and_parity_on():
    found = read_settings({**SETTINGS, "size": 8, "resize_mode": "squash"}, name="x", parity="upstream")
    assert found.identifier == "upstream-resize-first/squash/bicubic-8/mean.5,.4,.3std.2,.3,.4"


def test_load_open_clip_says_how_to_install_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModelError, match=r"open_clip cannot be used here .*: pip install open_clip_torch"):
        load_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k")
