"""Stage 2: what caching saves, whether the loader keeps up with a tower, and the memory of a batch of 8,192."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable

import torch
from PIL import Image

from benchmarks.measuring import Row, Settings, peak_beyond, seconds
from llm2clip.encoders import load_encoder
from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.encoders.layers.configs import HEAD_WIDTH, EfficientNetLiteConfig, trained_size
from llm2clip.encoders.layers.efficientnet_lite import EfficientNetLite
from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.train.align.config import AlignLoss
from llm2clip.train.align.heads import Scales, loss_of
from llm2clip.train.caption_cache.writer import maker_of
from llm2clip.train.data.image_text import read_pairs

DIM, LARGE = 256, 8192
_VARIANT = 2
"""EfficientNet-Lite2: the smallest tower that anybody trains with here, so the hardest for the loader to feed."""


def measure(settings: Settings) -> list[Row]:
    """All three, on one thread."""
    torch.set_num_threads(1)
    pairs = [pair for pair in read_pairs(["sample:"]) if pair.key.startswith("photographs")]
    files = [_larger(pair.record.read()) for pair in pairs[: settings.times(64)]]
    return [
        _caching([pair.captions[0].text for pair in pairs], settings),
        _loader(files, settings),
        _large_batch(),
    ]


def _caching(texts: list[str], settings: Settings) -> Row:
    """A step with cached text features against the same step computing them."""
    maker = maker_of(load_encoder(settings.encoder))
    stored = torch.from_numpy(maker.make(texts)).float()
    heads = torch.nn.Linear(HEAD_WIDTH, DIM), TextAdapter(maker.dim, DIM)
    images, scales = torch.randn(len(texts), HEAD_WIDTH), Scales(AlignLoss())

    def step(features: Callable[[], torch.Tensor]) -> None:
        loss_of(heads[0](images), heads[1](features()), scales, AlignLoss()).backward()

    cached = _median(lambda: step(lambda: stored), settings)
    computed = _median(lambda: step(lambda: torch.from_numpy(maker.make(texts)).float()), settings)
    return Row(
        benchmark="align",
        what="step computing text features / step with cached ones",
        value=computed / cached,
        unit="ratio",
        aim=1.3,
        better="higher",
        note=f"{len(texts)} pairs, text model {settings.encoder}, heads only; cached {cached * 1e3:.0f} ms",
    )


def _loader(files: list[bytes], settings: Settings) -> Row:
    """Decoding and resizing against the tower's forward pass on the same number of images, each on one thread."""
    side = trained_size(_VARIANT)
    preprocess = Preprocess(size=side, mode=ResizeMode.SHORTEST_CROP, mean=(0.5,) * 3, std=(0.5,) * 3)
    tower = EfficientNetLite(EfficientNetLiteConfig(variant=_VARIANT, image_size=side)).eval()
    pixels = torch.zeros(len(files), 3, side, side)
    decoding = _median(lambda: [preprocess.prepare(file, draft=True) for file in files], settings)
    with torch.inference_mode():
        passing = _median(lambda: [tower(part) for part in pixels.split(16)], settings)
    return Row(
        benchmark="align",
        what="images read / images through the tower, per second",
        value=passing / decoding,
        unit="ratio",
        aim=3,
        better="higher",
        note=f"JPEGs of 640 x 480; EfficientNet-Lite2 at {side} px, forward only: {len(files) / passing:.0f} images/s",
    )


def _larger(photograph: bytes) -> bytes:
    """The shipped photographs are small: as a JPEG of 640 x 480, as photographs of COCO or CC3M are."""
    found = io.BytesIO()
    Image.open(io.BytesIO(photograph)).convert("RGB").resize((640, 480)).save(found, "jpeg", quality=90)
    return found.getvalue()


def _large_batch() -> Row:
    heads = torch.nn.Linear(HEAD_WIDTH, DIM), TextAdapter(384, DIM)
    images, texts, scales = torch.randn(LARGE, HEAD_WIDTH), torch.randn(LARGE, 384), Scales(AlignLoss())
    one = torch.randn(8, HEAD_WIDTH), torch.randn(8, 384)

    def step(images: torch.Tensor, texts: torch.Tensor) -> None:
        loss_of(heads[0](images), heads[1](texts), scales, AlignLoss()).backward()

    step(*one)  # gradients and what the first call sets up are there whatever the batch
    return Row(
        benchmark="align",
        what=f"memory that a step of {LARGE:,} cached pairs adds",
        value=peak_beyond(lambda: step(images, texts)),
        unit="MB",
        aim=2000,
        note=f"scores alone are {LARGE**2 * 4 / 1e6:.0f} MB",
    )


def _median(work: Callable[[], object], settings: Settings) -> float:
    return statistics.median(seconds(work, times=settings.times(5), clock=settings.clock))
