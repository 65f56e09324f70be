"""What the commands of ``llm2clip-train`` run: a recipe is a function."""

from __future__ import annotations

import tomllib
from importlib import resources
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
    changed = tomllib.loads(
        resources.files("llm2clip.train").joinpath("data/nano-debug.toml").read_text("utf-8")
    )
    few = LoopConfig(**changed.pop("loop"))
    language = changed.pop("language") | dict.fromkeys(("pretrain", "warm", "bind", "tune"), few)
    align = changed.pop("align") | dict.fromkeys(("first", "crowds", "third"), few)
    return NanoConfig(**changed, language=LanguageConfig(**language), align=AlignConfig(**align))


def make_nano(out: Path, cache: Path, *, machine: Machine, debug: bool, stage: str) -> str:
    """Train nano up to ``stage`` (``language``, ``images`` or ``all``); with all, export and evaluate it.

    Returns one line that says where the result is.
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
    folder = export_nano(run, config, *train_nano(run, material, config))
    if not debug:
        from llm2clip.eval.commands.nano import report_nano
        from llm2clip.eval.nano_report.report import NanoOptions

        make_data(out / "measure", cache, sample=None)
        report_nano(str(folder), NanoOptions(data=out / "measure"), out / "evaluation.json")
    return f"nano is in {folder}; use it with --encoder {folder}"


def make_data(out: Path, cache: Path, *, sample: Path | None) -> str:
    """Write the missing evaluation sets, and the sample corpus if a folder is given for it."""
    needed = ("openmoji.tar", "scenes.tar", "scenes-openmoji.tar")
    if sample is None and all((out / name).exists() for name in needed):
        return f"evaluation sets are already in {out}"
    material = gather_material(cache)
    written = [(out, write_measuring_sets(material.emoji, material.scene_pool, cache, out))]
    if sample is not None:
        written.append((sample, write_sample_corpus(material.emoji, material.scene_pool, cache, sample)))
    listed = [
        (", ".join(f"{name} ({n})" for name, n in counts.items()), folder) for folder, counts in written
    ]
    return "wrote " + ", and ".join(f"{names} to {folder}" for names, folder in listed)
