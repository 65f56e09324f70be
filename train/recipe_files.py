"""Recipes by name: the settings of both stages as TOML files, with the data, hardware and hours that they are for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from llm2clip.train.align.config import AlignConfig
from llm2clip.train.cc.config import CcConfig
from llm2clip.train.core.config import ConfigError, build_config, override, read_config

NAMES = ("paper-15m", "paper-60m", "siglip2", "own-images", "debug")
"""Names of the recipes, the largest first."""


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """All settings of a training: what a recipe file and ``--config`` hold."""

    title: str = ""
    """What it is, in a line."""
    data: str = ""
    """The data it is for."""
    hardware: str = ""
    """The hardware it is for."""
    hours: str = ""
    """How long that takes."""
    source: str = ""
    """Where its settings come from."""
    cc: CcConfig | None = None
    """Stage 1."""
    align: AlignConfig | None = None
    """Stage 2."""


def load_recipe(name: str, *, settings: Sequence[str] = ()) -> RecipeConfig:
    """The recipe of that name, or in that .toml or .json file, with settings such as ``cc.tune.lr=1e-4`` applied.

    Raises:
        ConfigError: There is no such recipe, or a field is unknown, missing or of another type.
    """
    return build_config(RecipeConfig, override(_fields(name), settings), where=name)


def list_recipes() -> list[tuple[str, RecipeConfig]]:
    """Name and settings of every recipe."""
    return [(name, load_recipe(name)) for name in NAMES]


def _fields(name: str) -> dict[str, Any]:
    if name.endswith((".toml", ".json")):
        return read_config(Path(name))
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"unknown recipe {name!r}{hint} Expected {', '.join(NAMES)}, or a .toml or .json file"
        )
    with resources.as_file(resources.files("llm2clip.train").joinpath("recipes", f"{name}.toml")) as path:
        return read_config(path)
