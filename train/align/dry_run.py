"""Look before a long run: a thousand samples read, ten shown, hours and memory estimated from small measurements."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import nn

from llm2clip.common.files import format_bytes
from llm2clip.common.terminal import escape_control
from llm2clip.indexer.corpora.open import open_corpus
from llm2clip.train.align.config import AlignConfig
from llm2clip.train.align.heads import Scales, loss_of, make_image_head, make_text_adapter
from llm2clip.train.align.material import text_maker
from llm2clip.train.align.split import split_tower
from llm2clip.train.align.towers import Tower, load_tower, prepare_training
from llm2clip.train.caption_cache.writer import Maker
from llm2clip.train.core.display import duration
from llm2clip.train.data.captions import Caption, CaptionFileError, SkipReport
from llm2clip.train.data.image_text import Pair, read_pairs
from llm2clip.train.data.pair_batches import PairBatches

SAMPLES = 1000
_SHOWN, _CAPTIONS, _TIMED_IMAGES, _TIMED_TEXTS = 10, 4, 48, 48
_TRAINED_COST = 3.0
"""Forward and backward pass of a tower in multiples of the forward pass alone."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take, extrapolated from the samples."""

    images: int
    """Images in all corpora."""
    usable: float
    """Share of the samples that can be trained on."""
    texts: int
    """Different captions, estimated."""
    seconds: dict[str, float]
    """Part of the run -> its time."""
    memory: dict[str, float]
    """What -> bytes."""

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())


def dry_run(config: AlignConfig) -> str:
    """What a run would do, in lines; errors as those of the run, before hours are spent."""
    report = SkipReport()
    data = config.train
    found = read_pairs(data.images, data.captions, columns=data.columns, report=report)
    pairs = list(islice(found, min(filter(None, (SAMPLES, data.limit)))))
    tower = load_tower(config.vision.tower, image_size=config.vision.image_size)
    prepare_training(tower, config.vision)
    readable, decoding = _decode(pairs, tower, report)
    maker = None if config.text.features else text_maker(config)
    estimate = _estimate(config, pairs, len(readable), tower, maker, decoding)
    return "\n".join([*_shown(readable[:_SHOWN]), "", *_counted(config, pairs, report), *_told(estimate)])


def _decode(pairs: Sequence[Pair], tower: Tower, report: SkipReport) -> tuple[list[Pair], float]:
    """Pairs whose image can be read, and seconds per image in one thread."""
    readable, began = [], time.perf_counter()
    for pair in pairs:
        try:
            tower.preprocess.prepare(pair.record.read(), draft=True)
        except (OSError, ValueError) as error:
            report.skip(f"image: {error}", pair.key)
        else:
            readable.append(pair)
    if not readable:
        raise CaptionFileError(f"none of {len(pairs)} images can be read: {'; '.join(report.lines()[:3])}")
    return readable, (time.perf_counter() - began) / len(pairs)


def _estimate(
    config: AlignConfig,
    pairs: Sequence[Pair],
    readable: int,
    tower: Tower,
    maker: Maker | None,
    decoding: float,
) -> Estimate:
    listed = sum(1 for spec in config.train.images for _ in open_corpus(spec).records(captions=False))
    images = min(filter(None, (listed, config.train.limit)))
    config = replace(config, batch=max(2, min(config.batch, images)))  # no batch has an image twice
    batches = PairBatches([pair.captions for pair in pairs], size=config.batch, mix=config.mix, seed=0)
    texts = round(len(batches.texts) / len(pairs) * images)
    width = maker.dim if maker else 1024
    seconds = {
        "decoding images": images * decoding / max(1, torch.get_num_threads()),
        "vision tower": _tower_seconds(config, tower, images),
        "heads and loss": config.loop.steps * _seconds_per_step(config, tower, width),
    }
    if maker is not None:
        some = [batches.texts[n] for n in range(min(_TIMED_TEXTS, len(batches.texts)))]
        read = texts if config.text.cached else config.loop.steps * config.batch
        seconds["text model"] = read * _timed(lambda: maker.make(some)) / len(some)
    return Estimate(
        images=images,
        usable=readable / len(pairs),
        texts=texts,
        seconds=seconds,
        memory=_memory(config, tower, images=images, texts=texts, width=width),
    )


def _memory(config: AlignConfig, tower: Tower, *, images: int, texts: int, width: int) -> dict[str, float]:
    with torch.device("meta"):
        heads = make_image_head(tower, config), make_text_adapter(width, config)
    vision = config.vision
    parts = split_tower(tower, vision)
    parts.upper.requires_grad_(vision.trained == "last")
    trained = sum(p.numel() for m in (tower.module, *heads) for p in m.parameters() if p.requires_grad)
    copies = 16 + (4 if config.loop.ema else 0)  # weights, gradients, two moments
    side = tower.preprocess.size
    return {
        "trained weights and optimiser": trained * copies,
        "cached features": 2.0 * (images * parts.width * vision.views if vision.stored else 0)
        + 2.0 * texts * width * config.text.cached,
        "scores of a batch": 12.0 * config.batch**2,
        "pixels on disk": images * 3.0 * side**2 * (1 if vision.stored else 1.33),
    }


def _tower_seconds(config: AlignConfig, tower: Tower, images: int) -> float:
    """Seconds in the frozen part, which reads each view once, and in the trained one."""
    vision, side = config.vision, tower.preprocess.size
    pixels = torch.zeros(_TIMED_IMAGES // 3, 3, side, side)
    steps = config.loop.steps * config.batch * _TRAINED_COST / len(pixels)
    with torch.no_grad():
        if not vision.stored:
            return steps * _timed(lambda: tower.module(pixels))
        parts = split_tower(tower, vision)
        rows = parts.lower(pixels)
        seconds = images * vision.views / len(pixels) * _timed(lambda: parts.lower(pixels))
        return seconds + (steps * _timed(lambda: parts.upper(rows)) if vision.trained == "last" else 0.0)


def _seconds_per_step(config: AlignConfig, tower: Tower, width: int) -> float:
    heads: tuple[nn.Module, nn.Module] = make_image_head(tower, config), make_text_adapter(width, config)
    scales = Scales(config.loss)
    images, texts = torch.randn(config.batch, tower.width), torch.randn(config.batch, width)
    return _timed(lambda: loss_of(heads[0](images), heads[1](texts), scales, config.loss).backward())


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the second call: the first one warms up."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _shown(pairs: Sequence[Pair]) -> list[str]:
    lines = []
    for pair in pairs:
        lines.append(escape_control(pair.key))
        for caption in _varied(pair.captions)[:_CAPTIONS]:
            label = " ".join(filter(None, (caption.language, caption.kind)))
            lines.append(f"  {f'[{label}] ' if label else ''}{escape_control(caption.text[:120])}")
        if len(pair.captions) > _CAPTIONS:
            lines.append(f"  and {len(pair.captions) - _CAPTIONS} more")
    return lines


def _varied(captions: Sequence[Caption]) -> list[Caption]:
    """The first of each language and kind before the second ones."""
    seen: Counter[tuple[str | None, str]] = Counter()
    turns = []
    for caption in captions:
        form = caption.language, caption.kind
        turns.append(seen[form])
        seen[form] += 1
    return [captions[n] for n in sorted(range(len(captions)), key=lambda n: turns[n])]


def _counted(config: AlignConfig, pairs: Sequence[Pair], report: SkipReport) -> list[str]:
    captions = [caption for pair in pairs for caption in pair.captions]
    languages = Counter(caption.language or "unnamed" for caption in captions)
    said = ", ".join(f"{name} {count:,}" for name, count in languages.most_common(12))
    return [
        f"{len(pairs):,} samples of {', '.join(config.train.images)}: {len(captions):,} captions ({said})",
        *report.lines(),
    ]


def _told(estimate: Estimate) -> list[str]:
    times = ", ".join(f"{name} {duration(value)}" for name, value in estimate.seconds.items())
    sizes = ", ".join(f"{name} {format_bytes(value)}" for name, value in estimate.memory.items())
    return [
        f"{estimate.images:,} images listed, {100 * estimate.usable:.0f} % of the samples usable, about "
        f"{estimate.texts:,} texts",
        f"estimated time on this machine: {duration(estimate.total)} ({times})",
        f"memory beside the models and the activations of a micro-batch: {sizes}",
    ]
