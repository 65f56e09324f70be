"""What ``llm2clip-train nano`` and ``llm2clip-train sample`` run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llm2clip.train.core.device import Machine
from llm2clip.train.core.run_folder import Run
from llm2clip.train.nano.config import NanoConfig
from llm2clip.train.nano.material import annotations_folder, gather_material
from llm2clip.train.nano.pipeline import train_nano
from llm2clip.train.nano.sample_corpus import write_sample
from llm2clip.train.nano.texts import read_names


def recipe(*, debug: bool = False) -> NanoConfig:
    """The recipe of the shipped weights; ``debug`` takes a few steps of stage 1."""
    config = NanoConfig()
    if not debug:
        return config
    loop = replace(config.text.loop, steps=4, warmup=1, checkpoint_every=2, evaluate_every=4, log_every=1)
    return replace(config, text=replace(config.text, loop=loop))


def make_nano(out: Path, cache: Path, *, machine: Machine, debug: bool = False) -> str:
    """Train and export nano; returns one line that says where it is."""
    machine.use()
    config = recipe(debug=debug)
    run = Run(out, seed=config.seed)
    folder = train_nano(run, gather_material(config, cache), config)
    return f"nano is in {folder}; use it with --encoder {folder}"


def make_sample(out: Path, cache: Path) -> str:
    """Write the sample corpus; returns one line that says what was written."""
    written = write_sample(out, cache, read_names(annotations_folder(cache)))
    return f"wrote {', '.join(f'{name} ({count})' for name, count in written.items())} to {out}"
