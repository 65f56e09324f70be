"""What the commands of ``llm2clip-train`` run: a recipe is a function."""

from __future__ import annotations

from pathlib import Path

from llm2clip.train.core.device import Machine
from llm2clip.train.core.trainer import LoopConfig, Run
from llm2clip.train.nano.caption_batches import LanguageConfig
from llm2clip.train.nano.export import export_nano
from llm2clip.train.nano.image_batches import AlignConfig
from llm2clip.train.nano.pipeline import (
    NanoConfig,
    gather_material,
    train_images,
    train_language,
    train_nano,
)
from llm2clip.train.synthetic.sample_corpus import write_measuring_sets, write_sample_corpus


def nano(*, debug: bool = False) -> NanoConfig:
    """The recipe of the shipped weights; ``debug`` takes a few steps of each stage."""
    if not debug:
        return NanoConfig()
    few = LoopConfig(steps=3, warmup=1, evaluate_every=3, checkpoint_every=2)
    return NanoConfig(
        vocab_size=2_000,
        width=64,
        layers=1,
        teacher_queries=0,
        scenes=60,
        wordings=2,
        language=LanguageConfig(
            pretrain=few,
            warm=few,
            bind=few,
            tune=few,
            pretrain_batch=16,
            warm_batch=64,
            tune_batch=32,
            bind_scenes=4,
            long_scenes=2,
            short_scenes=2,
        ),
        align=AlignConfig(
            first=few,
            crowds=few,
            third=few,
            batch=12,
            crowd_emoji_batch=12,
            crowd_scene_batch=6,
            emoji_batch=12,
            scene_batch=6,
            caption_batch=16,
        ),
    )


def make_nano(out: Path, cache: Path, *, machine: Machine, debug: bool, stage: str) -> str:
    """Train nano up to ``stage`` and, when all is done, export and measure it.

    Args:
        out: Run folder.
        cache: Folder of packages and artwork.
        machine: What to compute on.
        debug: Take the small recipe.
        stage: ``language``, ``images`` (first part of stage 2) or ``all``.

    Returns:
        One line that says where the result is.
    """
    if stage not in ("language", "images", "all"):
        raise ValueError(f"unknown stage {stage!r}, expected 'language', 'images' or 'all'")
    machine.use()
    config = nano(debug=debug)
    material = gather_material(cache)
    run = Run(out, seed=config.seed)
    run.describe(config)
    if stage == "language":
        train_language(run, material, config)
        return f"language model trained, in {out}"
    if stage == "images":
        train_images(run, material, config)
        return f"vision tower trained against the prototypes, in {out}"
    parts = train_nano(run, material, config)
    folder = export_nano(run, config, *parts)
    if not debug:
        measure_nano(folder, out, cache)
    return f"nano is in {folder}; use it with --encoder {folder}"


def measure_nano(folder: Path, out: Path, cache: Path) -> None:
    """Write the evaluation sets and report on an exported folder, as ``llm2clip-eval nano`` does."""
    from llm2clip.eval.commands.nano import report_nano
    from llm2clip.eval.nano_report.report import NanoOptions

    sets = out / "measure"
    make_data(sets, cache, sample=None)
    report_nano(str(folder), NanoOptions(data=sets), out / "evaluation.json")


def make_data(out: Path, cache: Path, *, sample: Path | None) -> str:
    """Write the measuring sets that are missing (and the sample corpus, if a folder is given for it)."""
    needed = ("openmoji.tar", "scenes.tar", "scenes-openmoji.tar")
    if sample is None and all((out / name).exists() for name in needed):
        return f"evaluation sets are already in {out}"
    material = gather_material(cache)
    written = [_listed(out, write_measuring_sets(material.emoji, material.scene_pool, cache, out))]
    if sample is not None:
        written.append(
            _listed(sample, write_sample_corpus(material.emoji, material.scene_pool, cache, sample))
        )
    return "wrote " + ", and ".join(written)


def _listed(folder: Path, counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) + f" to {folder}"
