"""Long-CLIP from a ``.pt`` in OpenAI's layout, against that program's own arithmetic written out in the test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from llm2clip.encoders import ModelError, TextTooLongWarning, load_encoder
from llm2clip.encoders.core.dual_encoder import DualEncoder

WIDTH, DIM, POSITIONS, SIZE, PATCH = 64, 24, 40, 28, 14
SYMBOLS = sorted(set("abcdefghijklmnopqrstuvwxyz,!."))
WORDS = [*SYMBOLS, *(s + "</w>" for s in SYMBOLS), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
TEXTS = ["a cat", "two red dogs, one ball!", "a long text of many more letters than forty tokens"]


def blocks(prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for number in range(2):
        block = f"{prefix}transformer.resblocks.{number}."
        tensors |= {
            f"{block}attn.in_proj_weight": torch.randn(3 * WIDTH, WIDTH) / 6,
            f"{block}attn.in_proj_bias": torch.randn(3 * WIDTH) / 6,
            f"{block}attn.out_proj.weight": torch.randn(WIDTH, WIDTH) / 8,
            f"{block}mlp.c_fc.weight": torch.randn(4 * WIDTH, WIDTH) / 8,
            f"{block}mlp.c_fc.bias": torch.randn(4 * WIDTH) / 8,
            f"{block}mlp.c_proj.weight": torch.randn(WIDTH, 4 * WIDTH) / 16,
        }
        for name in ("attn.out_proj.bias", "mlp.c_proj.bias", "ln_1.bias", "ln_2.bias"):
            tensors[block + name] = torch.randn(WIDTH) / 8
        for name in ("ln_1.weight", "ln_2.weight"):
            tensors[block + name] = 1 + torch.randn(WIDTH) / 8
    return tensors


def checkpoint() -> dict[str, Tensor]:
    torch.manual_seed(3)
    visual = {
        "class_embedding": torch.randn(WIDTH),
        "positional_embedding": torch.randn((SIZE // PATCH) ** 2 + 1, WIDTH),
        "conv1.weight": torch.randn(WIDTH, 3, PATCH, PATCH) / 20,
        "proj": torch.randn(WIDTH, DIM) / 8,
    }
    for name in ("ln_pre", "ln_post"):
        visual |= {f"{name}.weight": 1 + torch.randn(WIDTH) / 8, f"{name}.bias": torch.randn(WIDTH) / 8}
    return {
        **{f"visual.{name}": tensor for name, tensor in visual.items()},
        **blocks("visual."),
        **blocks(""),
        "token_embedding.weight": torch.randn(len(WORDS), WIDTH),
        "positional_embedding": torch.randn(POSITIONS, WIDTH),
        "positional_embedding_res": torch.randn(POSITIONS, WIDTH),
        "ln_final.weight": 1 + torch.randn(WIDTH) / 8,
        "ln_final.bias": torch.randn(WIDTH) / 8,
        "text_projection": torch.randn(WIDTH, DIM) / 8,
        "logit_scale": torch.tensor(4.6),
    }


def norm(states: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(states, states.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def transformer(states: Tensor, tensors: dict[str, Tensor], prefix: str, *, causal: bool) -> Tensor:
    """Residual blocks with torch's own attention module and x * sigmoid(1.702 x)."""
    length = states.shape[1]
    mask = torch.full((length, length), -torch.inf).triu(1) if causal else None
    for number in range(2):
        block = f"{prefix}transformer.resblocks.{number}"
        attention = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        attention.load_state_dict({name: tensors[f"{block}.attn.{name}"] for name in names})
        seen = norm(states, tensors, f"{block}.ln_1")
        states = states + attention(seen, seen, seen, need_weights=False, attn_mask=mask)[0]
        hidden = norm(states, tensors, f"{block}.ln_2") @ tensors[f"{block}.mlp.c_fc.weight"].T
        hidden = hidden + tensors[f"{block}.mlp.c_fc.bias"]
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        states = states + hidden @ tensors[f"{block}.mlp.c_proj.weight"].T
        states = states + tensors[f"{block}.mlp.c_proj.bias"]
    return states


def text_vectors(ids: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Positions from the first table up to the twentieth, from the second after it; the state of the end token."""
    first = (torch.arange(POSITIONS) < 20)[:, None]
    positions = torch.where(first, tensors["positional_embedding"], tensors["positional_embedding_res"])
    states = tensors["token_embedding.weight"][ids] + positions
    states = norm(transformer(states, tensors, "", causal=True), tensors, "ln_final")
    return states[torch.arange(len(ids)), ids.argmax(-1)] @ tensors["text_projection"]


def image_vectors(pixels: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    patches = F.conv2d(pixels, tensors["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    states = torch.cat((tensors["visual.class_embedding"].expand(len(pixels), 1, -1), patches), dim=1)
    states = norm(states + tensors["visual.positional_embedding"], tensors, "visual.ln_pre")
    states = transformer(states, tensors, "visual.", causal=False)
    return norm(states[:, 0], tensors, "visual.ln_post") @ tensors["visual.proj"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("long")
    torch.save(checkpoint(), folder / "longclip-B.pt")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    merges = [("c", "a"), ("ca", "t</w>")]
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "mine"))


def unit(vectors: Tensor) -> NDArray[np.float32]:
    return F.normalize(vectors.detach(), dim=-1).numpy()


def test_encode_texts_equals_the_original(saved: Path):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(saved)
    rows = [tokenizer(text, truncation=True, max_length=POSITIONS)["input_ids"] for text in TEXTS]
    assert max(map(len, rows)) == POSITIONS
    # The original fills up with zeros, here a letter: what comes after the end token is never looked at.
    ids = torch.tensor([row + [0] * (POSITIONS - len(row)) for row in rows])
    with pytest.warns(TextTooLongWarning, match=f"only the first {POSITIONS} of"):
        ours = load_encoder(saved).encode_texts(TEXTS)
    np.testing.assert_allclose(ours, unit(text_vectors(ids, checkpoint())), atol=1e-5, rtol=1e-4)


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


def test_load_long_clip_converts_once(saved: Path, data_home: Path):
    encoder = load_encoder(saved)
    assert isinstance(encoder, DualEncoder)
    encoder.encode_texts(["cat"])
    assert encoder.loaded_sides == {"text"}
    (made,) = (data_home / "models" / "converted").rglob("*.safetensors")
    before = made.stat().st_mtime_ns
    load_encoder(saved).encode_images([np.zeros((28, 28, 3), np.uint8)])
    assert made.stat().st_mtime_ns == before


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
    with pytest.raises(ModelError, match=r"tokenizer\.json from openai/clip-vit-base-patch16 at"):
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


def test_settings_sha256_depends_on_tokenizer(saved: Path, folder: Path):
    before = load_encoder(saved).info.settings_sha256
    assert load_encoder(folder).info.settings_sha256 == before
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**data, "normalizer": None}))
    assert load_encoder(folder).info.settings_sha256 != before
