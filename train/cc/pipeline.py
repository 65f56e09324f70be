"""Stage 1 from captions to a folder: what ``llm2clip-train cc`` runs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llm2clip.common.terminal import log_stderr
from llm2clip.train.cc.config import CcConfig, DistilSettings, MntpSettings, TuneSettings
from llm2clip.train.cc.evaluate import Pairs, caption_accuracy, caption_pairs
from llm2clip.train.cc.objectives import ContrastStage, DistilStage, MntpStage
from llm2clip.train.cc.text_model import TextModel, open_text_model, save_text_model
from llm2clip.train.core import distributed
from llm2clip.train.core.loop import train
from llm2clip.train.core.report import write_report
from llm2clip.train.core.run_folder import Run
from llm2clip.train.data.caption_batches import CaptionBatches
from llm2clip.train.data.caption_files import read_groups
from llm2clip.train.data.caption_pool import CaptionPool
from llm2clip.train.data.caption_rows import Columns
from llm2clip.train.data.captions import Caption, CaptionFileError, CaptionGroup, SkipReport

if TYPE_CHECKING:
    from llm2clip.train.core.stage import LoopConfig, Outcome, Trainable

MODEL_FOLDER = "model"
"""Folder of the result, in the run's folder."""
_FREE = ("micro_batch", "checkpointing", "most")
"""Settings that an interrupted run may change: they change no weight."""


@dataclass(frozen=True, kw_only=True)
class CcResult:
    """What stage 1 came to."""

    folder: Path
    """The text model, as ``load_encoder`` opens it."""
    before: dict[str, float]
    """Accuracies of the model that training began with, in percent."""
    after: dict[str, float]
    """Those of the written one."""


def run_cc(config: CcConfig, out: Path, *, device: torch.device | None = None) -> CcResult:
    """Train a text model on captions and write it to ``out/model``; a run that was stopped continues.

    Raises:
        CaptionFileError: The captions cannot be read, or are too few.
        ModelError: The model cannot be read.
        RunError: ``out`` holds a run of other settings, or training cannot continue.
    """
    device = device or torch.device("cpu")
    with distributed.joined(device):
        with distributed.in_turn():
            run = Run(out, seed=config.seed)
        report = SkipReport()
        trained, held = read_data(config, report=report)
        if distributed.is_first():
            log_stderr(
                f"{len(trained):,} groups of {trained.texts:,} captions to train on, {len(held):,} held back to measure"
            )
            for line in report.lines():
                log_stderr(line)
            run.record("skipped", report.lines())
        model = open_text_model(config.model, config.tune, device=device)
        return _train(config, run, model, trained, held)


def read_data(config: CcConfig, *, report: SkipReport) -> tuple[CaptionPool, list[CaptionGroup]]:
    """The groups to train on, and those to measure with: other files, or a part that is held back."""
    evaluation = config.evaluation
    groups = _chosen(read_groups(config.data, columns=config.columns, report=report), config)
    if evaluation.data:
        other = _chosen(read_groups(evaluation.data, columns=config.columns), config)
        return CaptionPool(groups, report=report), list(other)
    pool = CaptionPool(groups, report=report)
    count = min(evaluation.holdout, len(pool) // 10)
    # By hash of the key: the same images whatever else is in the data.
    order = sorted(range(len(pool)), key=lambda number: hashlib.sha1(pool[number].key.encode()).digest())
    held = set(order[:count])
    kept = (pool[number] for number in range(len(pool)) if number not in held)
    return CaptionPool(kept), [pool[number] for number in sorted(held)]


@dataclass
class _Measure:
    """The evaluation while training; its first result in a run is kept as the accuracy to begin with."""

    run: Run
    model: TextModel
    pairs: Sequence[Pairs]

    def __call__(self) -> dict[str, float]:
        found = caption_accuracy(
            lambda texts: self.model.encode(texts).cpu().numpy(),
            self.pairs,
            count_tokens=self.model.reader.count_tokens,
        )
        if distributed.is_first() and "before" not in self.run.read():
            self.run.record("before", found)
        return found


def _train(
    config: CcConfig, run: Run, model: TextModel, pool: CaptionPool, held: Sequence[CaptionGroup]
) -> CcResult:
    pairs = caption_pairs(held, most=config.evaluation.most)
    measure = _Measure(run, model, pairs) if pairs else None

    def run_stage(make: Callable[[], Trainable], tune: TuneSettings, loop: LoopConfig) -> Outcome:
        model.begin(tune, seed=config.seed)
        if measure is None:
            loop = replace(loop, keep_best=None, patience=None)
        outcome = train(run, make(), loop, evaluate=measure, settings=config, free=_FREE)
        model.end()
        return outcome

    if (mntp := config.mntp) is not None:
        tune = replace(config.tune, lr=mntp.lr)
        run_stage(lambda: _mntp_stage(mntp, tune, model, pool), tune, mntp.loop)
    if (distil := config.distil) is not None:
        tune = replace(config.tune, lr=distil.lr)
        run_stage(lambda: _distil_stage(distil, tune, model), tune, distil.loop)
    batches = CaptionBatches(pool, config.batch, seed=config.seed)
    outcome = run_stage(
        lambda: ContrastStage(
            model, config.tune, batches, scale=config.scale, instruction=config.instruction
        ),
        config.tune,
        _length(config, batches),
    )
    folder = run.folder / MODEL_FOLDER
    if distributed.is_first():
        if folder.exists():  # of a run that had finished already
            shutil.rmtree(folder)
        save_text_model(model, folder, store=config.store)
        write_report(run)
    distributed.wait_for_all()
    return CcResult(folder=folder, before=run.read().get("before", {}), after=dict(outcome.measures))


def _length(config: CcConfig, batches: CaptionBatches) -> LoopConfig:
    """The loop with its steps, if they are given as passes over the data."""
    if config.epochs is None:
        return config.loop
    steps = max(1, round(config.epochs * batches.per_epoch))
    return replace(config.loop, steps=steps, warmup=min(config.loop.warmup, steps // 10))


def _mntp_stage(settings: MntpSettings, tune: TuneSettings, model: TextModel, pool: CaptionPool) -> MntpStage:
    texts = [caption.text for number in range(len(pool)) for caption in pool[number].captions]
    return MntpStage(
        model,
        tune,
        texts,
        head=model.token_head(),
        size=settings.texts,
        share=settings.share,
        mask=settings.mask,
    )


def _distil_stage(settings: DistilSettings, tune: TuneSettings, model: TextModel) -> DistilStage:
    vectors = np.load(settings.vectors, mmap_mode="r")
    if vectors.ndim != 2:
        raise ValueError(f"{settings.vectors} has shape {vectors.shape}, expected (rows, dim)")
    pairs = []
    for group in read_groups(settings.data, columns=Columns(key=settings.row)):
        if not group.key.isdigit():
            raise CaptionFileError(
                f"{settings.data[0]}: expected the number of a teacher's row in the field {settings.row!r}, got "
                f"{group.key!r}"
            )
        pairs += [(caption.text, int(group.key)) for caption in group.captions]
    width = model.module.config.hidden_size
    head = None
    if vectors.shape[1] != width:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = torch.nn.Linear(width, vectors.shape[1]).to(model.device)
    return DistilStage(model, tune, pairs, vectors, size=settings.texts, loss=settings.loss, head=head)


def _chosen(groups: Iterable[CaptionGroup], config: CcConfig) -> Iterator[CaptionGroup]:
    """Groups with the captions of the languages and kinds asked for."""
    if not config.languages and not config.kinds:
        yield from groups
        return
    for group in groups:
        kept = tuple(caption for caption in group.captions if _wanted(caption, config))
        if kept:
            yield replace(group, captions=kept)


def _wanted(caption: Caption, config: CcConfig) -> bool:
    spoken = not config.languages or caption.language in config.languages
    return spoken and (not config.kinds or caption.kind in config.kinds)
