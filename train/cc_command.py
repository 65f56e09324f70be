"""What ``llm2clip-train cc`` and ``llm2clip-train recipes`` call and print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2clip.train.core.config import ConfigError, config_data
from llm2clip.train.core.device import Machine
from llm2clip.train.recipe_files import RecipeConfig, list_recipes, load_recipe


def make_cc(
    recipe: str,
    out: Path,
    *,
    model: str | None,
    data: Sequence[str],
    settings: Sequence[str],
    machine: Machine,
) -> str:
    """Run stage 1 of a recipe; one line that says where the text model is and what it is worth.

    Args:
        recipe: Name or file of the recipe.
        out: Run folder.
        model: Takes the place of the recipe's.
        data: Files of captions in the place of the recipe's, unless empty.
        settings: Fields to set, such as ``cc.tune.lr=1e-4``.
        machine: What to compute on.
    """
    import torch

    from llm2clip.train.cc.pipeline import run_cc
    from llm2clip.train.core.distributed import local_device

    given = [f"cc.model={json.dumps(model)}"] if model else []
    given += [f"cc.data={json.dumps(list(data))}"] if data else []
    config = load_recipe(recipe, settings=[*given, *settings]).cc
    if config is None:
        raise ConfigError(f"{recipe} has no settings of stage 1: expected a table [cc]")
    local_device(machine).use()
    result = run_cc(config, out, device=torch.get_default_device())
    said = f"text model in {result.folder}"
    if "cra" in result.before and "cra" in result.after:
        said += f"; captions of held-back images find each other: {result.before['cra']:.1f} % before, "
        said += f"{result.after['cra']:.1f} % after"
    return said


def show_recipes(name: str | None, *, as_json: bool) -> str:
    """All recipes with what they are for, or every setting of one, defaults included."""
    if name is not None:
        fields = config_data(load_recipe(name))
        return json.dumps(fields, indent=1, ensure_ascii=False) if as_json else "\n".join(_lines(fields, ""))
    found = list_recipes()
    if as_json:
        return json.dumps({key: config_data(recipe) for key, recipe in found}, indent=1, ensure_ascii=False)
    return "\n\n".join(_summary(key, recipe) for key, recipe in found)


def _summary(name: str, recipe: RecipeConfig) -> str:
    lines = [f"{name}: {recipe.title}"]
    lines += [f"  {field:<9} {getattr(recipe, field)}" for field in ("data", "hardware", "hours", "source")]
    return "\n".join(lines)


def _lines(fields: dict[str, Any], prefix: str) -> list[str]:
    """Fields as ``--set`` takes them."""
    found = []
    for name, value in fields.items():
        if isinstance(value, dict):
            found += _lines(value, f"{prefix}{name}.")
        else:
            text = "none" if value is None else json.dumps(value, ensure_ascii=False)
            found.append(f"{prefix}{name}={text}")
    return found
