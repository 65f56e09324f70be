"""Long-CLIP from a ``.pt`` in OpenAI's layout, against that program's own arithmetic written out in the test."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from llm2clip.encoders import ModelError, TextTooLongWarning, load_encoder

from .openai_reference import (
    DIM,
    WIDTH,
    blocks,
    norm,
    norm_weights,
    quick_gelu,
    save_tokenizer,
    text_tensors,
    text_vectors,
    transformer,
    unit,
)

POSITIONS, SIZE, PATCH = 40, 28, 14
TEXTS = ["a cat", "two red dogs, one ball!", "a long text of many more letters than forty tokens"]


def checkpoint() -> dict[str, Tensor]:
    torch.manual_seed(3)
    visual = {
        "class_embedding": torch.randn(WIDTH),
        "positional_embedding": torch.randn((SIZE // PATCH) ** 2 + 1, WIDTH),
        "conv1.weight": torch.randn(WIDTH, 3, PATCH, PATCH) / 20,
        "proj": torch.randn(WIDTH, DIM) / 8,
    }
    visual |= norm_weights("ln_pre") | norm_weights("ln_post")
    return {
        **{f"visual.{name}": tensor for name, tensor in visual.items()},
        **blocks("visual."),
        **text_tensors(positions=POSITIONS),
        "positional_embedding_res": torch.randn(POSITIONS, WIDTH),
        "logit_scale": torch.tensor(4.6),
    }


def image_vectors(pixels: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    patches = F.conv2d(pixels, tensors["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    states = torch.cat((tensors["visual.class_embedding"].expand(len(pixels), 1, -1), patches), dim=1)
    states = norm(states + tensors["visual.positional_embedding"], tensors, "visual.ln_pre")
    states = transformer(states, tensors, "visual.", causal=False, activation=quick_gelu)
    return norm(states[:, 0], tensors, "visual.ln_post") @ tensors["visual.proj"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    torch.save(checkpoint(), folder / "longclip-B.pt")
    save_tokenizer(folder, positions=POSITIONS)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "mine"))


def test_encode_texts_equals_the_original(saved: Path):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(saved)
    rows = [tokenizer(text, truncation=True, max_length=POSITIONS)["input_ids"] for text in TEXTS]
    assert max(map(len, rows)) == POSITIONS
    # The original fills up with zeros, here a letter: what comes after the end token is never looked at.
    ids = torch.tensor([row + [0] * (POSITIONS - len(row)) for row in rows])
    with pytest.warns(TextTooLongWarning, match=f"only the first {POSITIONS} of"):
        ours = load_encoder(saved).encode_texts(TEXTS)
    tensors = checkpoint()
    # Positions from the first table up to the twentieth, from the second after it.
    first = (torch.arange(POSITIONS) < 20)[:, None]
    positions = torch.where(first, tensors["positional_embedding"], tensors["positional_embedding_res"])
    expected = text_vectors(ids, positions, tensors, quick_gelu)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-4)


def test_encode_images_equals_the_original(saved: Path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)) for _ in range(3)]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.stack([torch.tensor(np.asarray(image)) for image in images]).double() / 255
    pixels = ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).float()
    ours = load_encoder(saved).encode_images(images)
    np.testing.assert_allclose(ours, unit(image_vectors(pixels, checkpoint())), atol=1e-5, rtol=1e-4)


def test_info_of_long_clip(saved: Path):
    import hashlib

    info = load_encoder(saved).info
    assert (info.family, info.dim, info.image_size, info.max_text_tokens) == ("long-clip", DIM, 28, POSITIONS)
    assert info.parameters == sum(tensor.numel() for tensor in checkpoint().values())
    assert info.weights_sha256 == hashlib.sha256((saved / "longclip-B.pt").read_bytes()).hexdigest()
    assert info.preprocessing.startswith("rgb-on-white/shortest-crop-half-even/bicubic-28/mean.48145466,")
    assert (info.languages, info.licence) == (("en",), "Apache-2.0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ln_final.weight": None}, r"missing tensors: ln_final\.weight"),
        ({"positional_embedding_res": None}, r"has no tensor positional_embedding_res"),
        (
            {"positional_embedding_res": torch.zeros(8, WIDTH)},
            r"positional_embedding_res is \[8, 64\], expected",
        ),
        ({"stray": torch.zeros(2)}, "unexpected tensors: stray"),
        ({"text_projection": torch.zeros(WIDTH, 8)}, r"vectors of 8, visual\.proj of 24; expected the same"),
        ({"ln_final.bias": torch.zeros(9)}, r"ln_final\.bias is F32 \[9\], expected F32 \[64\]"),
        ({"token_embedding.weight": torch.zeros(9)}, "expected 2 axes, none empty"),
        ({"ln_final.weight": torch.full((WIDTH,), torch.nan)}, r"not finite in: ln_final\.weight"),
    ],
)
def test_load_long_clip_names_wrong_tensors(change: dict[str, Tensor | None], message: str, folder: Path):
    tensors = {name: tensor for name, tensor in {**checkpoint(), **change}.items() if tensor is not None}
    torch.save(tensors, folder / "longclip-B.pt")
    with pytest.raises(ModelError, match=message):
        load_encoder(folder).encode_texts(["cat"])


def test_load_long_clip_borrows_tokenizer(saved: Path, folder: Path, data_home: Path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json from openai/clip-vit-base-patch16"):
        load_encoder(folder).encode_texts(["cat"])
    (data_home / "models" / "clip-vit-base-patch16").mkdir(parents=True)
    shutil.copy(saved / "tokenizer.json", data_home / "models" / "clip-vit-base-patch16")
    assert np.array_equal(
        load_encoder(folder).encode_texts(["cat"]), load_encoder(saved).encode_texts(["cat"])
    )


def test_load_encoder_finds_long_clip_by_name(saved: Path, data_home: Path):
    shutil.copytree(saved, data_home / "models" / "LongCLIP-B")
    encoder = load_encoder("long-clip-b")
    assert encoder.info.name == "long-clip-b"
    assert np.array_equal(encoder.encode_texts(["cat"]), load_encoder(saved).encode_texts(["cat"]))
