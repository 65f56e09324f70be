"""Everything that steps read, prepared once and found again when the run resumes: pixels, image and text features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm2clip.encoders import load_encoder
from llm2clip.train.align.config import AlignConfig, PairData
from llm2clip.train.align.split import SplitTower
from llm2clip.train.align.towers import Tower
from llm2clip.train.caption_cache.sources import Caption as Row
from llm2clip.train.caption_cache.sources import caption_files, read_captions
from llm2clip.train.caption_cache.store import CaptionFeatures, Progress
from llm2clip.train.caption_cache.writer import FeatureOptions, Maker, maker_of, write_rows
from llm2clip.train.core.run_folder import RunError
from llm2clip.train.data.captions import Caption, CaptionFileError, SkipReport
from llm2clip.train.data.crops import CropConfig, augment, draw_crops
from llm2clip.train.data.image_text import Pair, read_pairs
from llm2clip.train.data.pixel_cache import PixelCache, cache_pixels

_CHUNK = 64
_MARGIN = 1.15
"""Cached images that will be cropped are larger than the tower's input by this."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Samples:
    """Images with their captions, in a fixed order; only readable ones."""

    keys: tuple[str, ...]
    """Of each image."""
    captions: tuple[tuple[Caption, ...], ...]
    """Of each image."""
    pixels: PixelCache
    """Of all images that were listed."""
    numbers: NDArray[np.int64]
    """Of each sample its number in ``pixels``."""
    skipped: SkipReport
    """What was left out."""


def read_samples(data: PairData, folder: Path, *, tower: Tower, larger: bool, tell: Tell) -> Samples:
    """List images with captions and decode them into ``folder``; ``larger`` keeps a margin for crops."""
    report = SkipReport()
    found = read_pairs(data.images, data.captions, columns=data.columns, report=report)
    pairs = list(islice(found, data.limit or None))
    size = tower.preprocess.size
    preprocess = replace(tower.preprocess, size=ceil(size * _MARGIN)) if larger else tower.preprocess
    pixels = cache_pixels(
        [pair.record for pair in pairs],
        folder,
        preprocess=preprocess,
        tell=lambda done: tell(f"{done:,} of {len(pairs):,} images decoded"),
    )
    for key, reason in pixels.problems.items():
        report.skip(f"image: {reason}", key)
    return _readable(pairs, pixels, report)


def _readable(pairs: Sequence[Pair], pixels: PixelCache, report: SkipReport) -> Samples:
    numbers = np.flatnonzero(pixels.rows >= 0)
    if not len(numbers):
        raise CaptionFileError(f"none of {len(pairs)} images can be read: {'; '.join(report.lines()[:3])}")
    return Samples(
        keys=tuple(pairs[n].key for n in numbers.tolist()),
        captions=tuple(pairs[n].captions for n in numbers.tolist()),
        pixels=pixels,
        numbers=numbers.astype(np.int64),
        skipped=report,
    )


def split(samples: Samples, held_back: int, *, seed: int) -> tuple[Samples, Samples]:
    """Training and validation samples; ``held_back`` random ones, at most a tenth, are for validation."""
    count = min(held_back, len(samples.keys) // 10)
    if count < 2:
        raise CaptionFileError(
            f"{len(samples.keys)} images are too few to keep some back for measuring; name validation images"
        )
    order = np.random.default_rng([seed, 31]).permutation(len(samples.keys))
    return _part(samples, np.sort(order[count:])), _part(samples, np.sort(order[:count]))


def _part(samples: Samples, chosen: NDArray[np.int64]) -> Samples:
    return replace(
        samples,
        keys=tuple(samples.keys[n] for n in chosen.tolist()),
        captions=tuple(samples.captions[n] for n in chosen.tolist()),
        numbers=samples.numbers[chosen],
    )


def text_maker(config: AlignConfig) -> Maker:
    """What computes text features: an encoder's states before its adapter, or its vectors."""
    device = torch.get_default_device()
    with torch.device("cpu"):
        return maker_of(load_encoder(config.text.model, device=str(device), dtype=config.text.dtype))


@dataclass(frozen=True)
class TextFeatures:
    """Features of texts, by number of the text."""

    take: Callable[[NDArray[np.int64]], Tensor]
    """Numbers of texts to features, shape (n, width), float32, on the default device."""
    width: int
    """Length of one."""
    name: str
    """What made them."""
    kind: str
    """``states`` of a language model, before an adapter of its own, or ``vectors`` of an encoder."""

    @classmethod
    def stored(cls, rows: Tensor, *, name: str, kind: str) -> TextFeatures:
        """Features in memory. Shape: (texts, width), float16."""
        return cls(lambda numbers: rows[torch.from_numpy(numbers)].float(), rows.shape[1], name, kind)

    @classmethod
    def computed(cls, texts: Sequence[str], maker: Maker) -> TextFeatures:
        """Features that are computed whenever they are asked for."""

        def take(numbers: NDArray[np.int64]) -> Tensor:
            made = maker.make([texts[n] for n in numbers.tolist()])
            return torch.from_numpy(np.array(made)).float().to(torch.get_default_device())

        return cls(take, maker.dim, str(maker.identity["name"]), maker.kind)


def text_features(texts: Sequence[str], folder: Path, *, config: AlignConfig, tell: Tell) -> TextFeatures:
    """Features of texts: from a folder of ``features``, computed once into ``folder``, or computed when needed.

    Raises:
        ValueError: The text model cannot be loaded, or the given features lack a text.
        OSError: The disk is full.
    """
    if config.text.features is not None:
        return _given_features(texts, config)
    maker = text_maker(config)
    if not config.text.cached:
        return TextFeatures.computed(texts, maker)
    digest = hashlib.sha256("\0".join(texts).encode())
    digest.update(str(sorted(maker.identity.items())).encode())
    place = folder / f"text-features-{digest.hexdigest()[:12]}"
    rows = (Row(str(number), text) for number, text in enumerate(texts))
    name = str(maker.identity["name"])
    write_rows(
        rows,
        place,
        [{"texts": len(texts), "sha256": digest.hexdigest()}],
        maker=maker,
        options=FeatureOptions(block=1024),
        tell=lambda done: tell(f"{done.rows:,} of {len(texts):,} texts read by {name}"),
    )
    return TextFeatures.stored(_whole(CaptionFeatures(place)), name=name, kind=maker.kind)


def _given_features(texts: Sequence[str], config: AlignConfig) -> TextFeatures:
    assert config.text.features is not None
    stored = CaptionFeatures(config.text.features)
    keys = iter(stored.keys())
    where: dict[str, int] = {}
    captions = (
        each for each in read_captions(caption_files(config.text.feature_captions)) if not each.problem
    )
    for number, (caption, key) in enumerate(zip(captions, keys, strict=False)):
        if caption.key != key:
            raise RunError(
                f"{config.text.features} was not made from text.feature_captions: row {number} is of {key!r}, "
                f"the files have {caption.key!r} there"
            )
        where.setdefault(caption.text, number)
    missing = [text for text in texts if text.strip() not in where]
    if missing:
        raise RunError(
            f"{config.text.features} lacks features of {len(missing):,} of {len(texts):,} captions, first "
            f"{missing[0]!r}; "
            "make them from files with all captions, or leave text.features out"
        )
    rows = np.array([where[text.strip()] for text in texts], np.int64)
    name = str(stored.made_by.get("name", "features"))
    return TextFeatures.stored(_whole(stored)[torch.from_numpy(rows)], name=name, kind=stored.kind)


def image_features(
    samples: Samples,
    folder: Path,
    *,
    tower: Tower,
    frozen: SplitTower,
    view: int,
    config: AlignConfig,
    tell: Tell,
) -> Tensor:
    """What the frozen part of a tower gives. Shape: (images, width), float16.

    View 0 is the image as it will be searched, 1 mirrored, others random crops, every second one mirrored.
    """

    def make(keys: Sequence[str]) -> NDArray[np.float32]:
        numbers = np.array([int(key) for key in keys], np.int64)
        parts = [
            encode_view(samples.pixels.take(numbers[start : start + _CHUNK]), tower, frozen, view, config)
            for start in range(0, len(numbers), _CHUNK)
        ]
        return np.concatenate(parts)

    identity = {
        "name": tower.source,
        "preprocess": tower.preprocess.identifier,
        "last": config.vision.last if config.vision.trained == "last" else None,
        "view": view,
        "crop": [config.crop.smallest, config.crop.ratio] if view > 1 else None,
        "seed": config.seed if view > 1 else None,
    }
    maker = Maker(kind="vectors", identity=identity, dim=frozen.width, make=make)
    count = len(samples.numbers)

    def said(done: Progress) -> None:
        tell(f"view {view + 1}: features of {done.rows:,} of {count:,} images")

    write_rows(
        (Row(key, str(number)) for key, number in zip(samples.keys, samples.numbers, strict=True)),
        folder,
        [{"images": count, "sha256": hashlib.sha256("\0".join(samples.keys).encode()).hexdigest()}],
        maker=maker,
        options=FeatureOptions(block=256),
        tell=said,
    )
    return _whole(CaptionFeatures(folder))


@torch.inference_mode()
def encode_view(
    pixels: NDArray[np.uint8], tower: Tower, frozen: SplitTower, view: int, config: AlignConfig
) -> NDArray[np.float32]:
    """What the frozen part gives of one view of a few images. Shape: (n, S, S, 3), uint8 -> (n, width)."""
    changes = CropConfig(smallest=config.crop.smallest if view > 1 else 1.0, ratio=config.crop.ratio)
    # The content decides the crops, so that they do not depend on how images are grouped into blocks.
    seed = int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "big")
    crops = draw_crops(len(pixels), config=changes, rng=np.random.default_rng([config.seed, view, seed]))
    if view % 2:
        crops = replace(crops, mirrored=np.ones(len(pixels), np.bool_))
    images = augment(pixels, crops, size=tower.preprocess.size)
    return np.asarray(frozen.lower(tower.normalised(images)).float().cpu().numpy())


def _whole(features: CaptionFeatures) -> Tensor:
    return torch.from_numpy(features.rows(0, len(features))).to(torch.get_default_device())


def unique_texts(groups: Sequence[Sequence[Caption]]) -> Iterator[str]:
    """All different texts in order of appearance."""
    yield from dict.fromkeys(caption.text for captions in groups for caption in captions)
