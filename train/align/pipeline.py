"""A run of stage 2 from images and captions to a folder that ``export`` makes an encoder of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.train.align.closed_form import Moments, fit_cca
from llm2clip.train.align.config import AlignConfig
from llm2clip.train.align.evaluate import Queries, best_ranks, queries_of, recalls
from llm2clip.train.align.heads import (
    before_last,
    make_blocks_identities,
    make_image_head,
    make_text_adapter,
    set_last,
)
from llm2clip.train.align.material import (
    Samples,
    Tell,
    TextFeatures,
    image_features,
    read_samples,
    split,
    text_features,
    unique_texts,
)
from llm2clip.train.align.output import ALIGNED, Trained, write_aligned
from llm2clip.train.align.split import SplitTower, split_tower
from llm2clip.train.align.stage import AlignStage, Images
from llm2clip.train.align.towers import Tower, load_tower, merged, prepare_training
from llm2clip.train.core.distributed import in_turn, is_first, wait_for_all
from llm2clip.train.core.loop import train
from llm2clip.train.core.report import write_report
from llm2clip.train.core.run_folder import Run
from llm2clip.train.data.crops import Crops, augment
from llm2clip.train.data.pair_batches import PairBatches

_BLOCK = 512
"""Images of a forward pass while measuring, and pairs of a block of the closed form."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A run that is ready to train."""

    stage: AlignStage
    """What the loop trains."""
    train: Samples
    """Samples to learn from."""
    validation: Samples
    """Samples to measure on."""
    validation_features: Tensor | None
    """What the frozen part of the tower gives. Shape: (images, width)."""
    queries: tuple[Queries, ...]
    """Captions of the validation images by language."""
    texts: TextFeatures
    """Of all captions."""

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Recall by language with the present weights."""
        adapter = self.stage.text_adapter
        ranks = best_ranks(
            self.queries,
            images=self.validation_vectors(),
            text_vectors=lambda numbers: adapter(self.texts.take(numbers)),
        )
        return recalls(ranks)

    @torch.no_grad()
    def validation_vectors(self) -> Tensor:
        """Vectors of the validation images. Shape: (images, dim)."""
        count, features = len(self.validation.keys), self.validation_features
        parts = []
        for start in range(0, count, _BLOCK):
            if features is not None:
                parts.append(self.stage.encode_stored(features[start : start + _BLOCK].float()))
            else:
                parts.append(self.stage.encode(_pixels(self.validation, start, self.stage.tower)))
        return torch.cat(parts)


def run_align(config: AlignConfig, out: Path, *, tell: Tell | None = None) -> Path:
    """Train; an interrupted run continues when called again. Returns the folder of the result.

    Args:
        config: What to train, on what, how.
        out: Folder of the run.
        tell: Called with one line on what is being done.

    Raises:
        ValueError: The configuration does not fit the data, the models or what the folder holds.
        OSError: A file cannot be read or written.
    """
    tell = tell or (lambda _line: None)
    with in_turn():
        run = Run(out, seed=config.seed)
    parts = prepare(config, out, tell=tell)
    if is_first():
        run.record("data", _described(parts))
    outcome = train(run, parts.stage, config.loop, evaluate=parts.measure, settings=config)
    result = out / ALIGNED
    if is_first():
        stage = parts.stage
        merged(stage.tower.module)
        trained = Trained(
            tower=stage.tower,
            image_head=stage.image_head,
            text_adapter=stage.text_adapter,
            scales=stage.scales,
            text_features=parts.texts.name,
            text_kind=parts.texts.kind,
        )
        if not result.exists():
            write_aligned(result, trained, config, measures=outcome.measures)
        write_report(run)
    wait_for_all()
    return result


def prepare(config: AlignConfig, out: Path, *, tell: Tell) -> Parts:
    """Read the data, compute what can be computed once, and set up the stage; errors as in :func:`run_align`."""
    torch.manual_seed(config.seed)
    vision = config.vision
    tower = load_tower(vision.tower, image_size=vision.image_size)
    split_at = split_tower(tower, vision)
    with in_turn():
        larger = not vision.stored and config.crop.changes
        train_set = read_samples(config.train, out / "pixels", tower=tower, larger=larger, tell=tell)
        if config.validation is None:
            train_set, validation = split(train_set, config.kept_back, seed=config.seed)
        else:
            validation = read_samples(
                config.validation, out / "pixels-validation", tower=tower, larger=False, tell=tell
            )
    for line in train_set.skipped.lines():
        tell(line)
    batches = PairBatches(train_set.captions, size=config.batch, mix=config.mix, seed=config.seed)
    numbers = {text: number for number, text in enumerate(batches.texts)}
    for text in unique_texts(validation.captions):
        numbers.setdefault(text, len(numbers))
    with in_turn():
        texts = text_features(list(numbers), out, config=config, tell=tell)
        views: tuple[Tensor, ...] = ()
        measured = None
        if vision.stored:
            views, measured = _stored_features((train_set, validation), out, tower, split_at, config, tell)
    heads = make_image_head(tower, config), make_text_adapter(texts.width, config)
    if config.closed_form.used:
        tell("fitting the closed-form start")
        seen = _of_stored(views, split_at) if views else _tower_features(train_set, tower)
        _fit_start(config, heads, seen, texts, batches)
    prepare_training(tower, vision)
    split_at.upper.requires_grad_(vision.trained == "last")
    pixels, places = train_set.pixels, train_set.numbers
    stage = AlignStage(
        config,
        tower=tower,
        heads=heads,
        batches=batches,
        images=Images(views) if vision.stored else Images(take=lambda chosen: pixels.take(places[chosen])),
        texts=texts.take,
        keys=train_set.keys,
        upper=split_at.upper if vision.stored else None,
    )
    return Parts(
        stage=stage,
        train=train_set,
        validation=validation,
        validation_features=measured,
        queries=tuple(queries_of(validation.captions, numbers)),
        texts=texts,
    )


def _stored_features(
    samples: tuple[Samples, Samples],
    out: Path,
    tower: Tower,
    frozen: SplitTower,
    config: AlignConfig,
    tell: Tell,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Of training samples in several views, and of validation samples."""

    def made(of: Samples, name: str, view: int) -> Tensor:
        place = out / f"image-features-{name}"
        return image_features(of, place, tower=tower, frozen=frozen, view=view, config=config, tell=tell)

    views = tuple(made(samples[0], str(view), view) for view in range(config.vision.views))
    return views, made(samples[1], "validation", 0)


def _fit_start(
    config: AlignConfig,
    heads: tuple[nn.Module, TextAdapter],
    views: tuple[Tensor, ...],
    texts: TextFeatures,
    batches: PairBatches,
) -> None:
    """Set the last layers of both heads to regularised canonical directions of all pairs and views."""
    image_head, text_adapter = heads
    for head in heads:
        make_blocks_identities(head)
    owner = np.repeat(np.arange(len(batches.starts) - 1), np.diff(batches.starts))
    width = views[0].shape[1]
    moments = Moments(width, texts.width)
    with torch.no_grad():
        image_rows = [before_last(image_head, view.float()).cpu().numpy() for view in views]
        for start in range(0, len(owner), 16 * _BLOCK):
            rows = slice(start, start + 16 * _BLOCK)
            text_rows = before_last(text_adapter, texts.take(batches.text_of[rows])).cpu().numpy()
            for of_view in image_rows:
                moments.add(of_view[owner[rows]], text_rows, batches.shares[rows])
    closed = config.closed_form
    fitted = fit_cca(
        moments,
        dim=config.dim,
        image_ridge=closed.image_ridge,
        text_ridge=closed.text_ridge,
        power=closed.power,
    )
    set_last(image_head, fitted.image)
    set_last(text_adapter, fitted.text)


@torch.no_grad()
def _of_stored(views: tuple[Tensor, ...], frozen: SplitTower) -> tuple[Tensor, ...]:
    """The tower's features from what its frozen part gives."""
    return tuple(torch.cat([frozen.upper(rows.float()) for rows in view.split(_BLOCK)]) for view in views)


@torch.no_grad()
def _tower_features(samples: Samples, tower: Tower) -> tuple[Tensor, ...]:
    starts = range(0, len(samples.keys), _BLOCK)
    parts = [tower.module(tower.normalised(_pixels(samples, start, tower))) for start in starts]
    return (torch.cat(parts),)


def _pixels(samples: Samples, start: int, tower: Tower) -> Tensor:
    """Images as they are searched. Shape: (n, 3, S, S), 0 to 255."""
    pixels = samples.pixels.take(samples.numbers[start : start + _BLOCK])
    unchanged = Crops(np.tile([0.0, 0.0, 1.0, 1.0], (len(pixels), 1)), np.zeros(len(pixels), np.bool_))
    return augment(pixels, unchanged, size=tower.preprocess.size)


def _described(parts: Parts) -> dict[str, object]:
    batches = parts.stage.batches
    return {
        "images": len(parts.train.keys),
        "captions": len(batches.shares),
        "texts": len(batches.texts),
        "validation_images": len(parts.validation.keys),
        "validation_captions": {each.language: len(each.texts) for each in parts.queries},
        "skipped": parts.train.skipped.lines(),
        "text_features": parts.texts.name,
        "trained_parameters": sum(
            p.numel() for m in parts.stage.modules.values() for p in m.parameters() if p.requires_grad
        ),
    }
