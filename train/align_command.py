"""What ``llm2clip-train align`` calls and prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm2clip.train.core.device import Machine


@dataclass(frozen=True, kw_only=True)
class AlignRequest:
    """What the command line says."""

    recipe: str
    """Name or file of the recipe."""
    images: tuple[str, ...] = ()
    """Corpora in the place of the recipe's."""
    captions: tuple[str, ...] = ()
    """Files of captions in the place of the recipe's."""
    tower: str | None = None
    """Vision tower in the place of the recipe's."""
    text_model: str | None = None
    """Text model in the place of the recipe's."""
    settings: Sequence[str] = ()
    """Fields to set, such as ``align.batch=1024``."""


def make_aligned(request: AlignRequest, out: Path, *, machine: Machine, dry: bool) -> str:
    """Run stage 2 of a recipe, or look at what it would do; what to print."""
    import torch

    from llm2clip.train.core.config import ConfigError
    from llm2clip.train.core.distributed import is_first, joined, local_device
    from llm2clip.train.recipe_files import load_recipe

    given = []
    if request.images:
        given.append(f"align.train.images={json.dumps(request.images)}")
    if request.captions:
        given.append(f"align.train.captions={json.dumps(request.captions)}")
    if request.tower:
        given.append(f"align.vision.tower={json.dumps(request.tower)}")
    if request.text_model:
        given.append(f"align.text.model={json.dumps(request.text_model)}")
    config = load_recipe(request.recipe, settings=[*given, *request.settings]).align
    if config is None:
        raise ConfigError(f"{request.recipe} has no settings of stage 2: expected a table [align]")
    local_device(machine).use()
    if dry:
        from llm2clip.train.align.dry_run import dry_run

        return dry_run(config)
    from rich.console import Console

    from llm2clip.train.align.pipeline import run_align

    with joined(torch.get_default_device()):
        console = Console(stderr=True, quiet=not is_first(), highlight=False, markup=False, soft_wrap=True)
        result = run_align(config, out, tell=console.print)
        return f"aligned towers in {result}; report in {out / 'report.html'}" if is_first() else ""
