"""Configurations of training: frozen dataclasses from TOML or JSON, with overrides of single fields.

Nothing is ignored: an unknown field, a missing one or a value of another type is an error that names it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import from_json, to_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


class ConfigError(ValueError):
    """A configuration cannot be used."""


def build_config(cls: type[Config], data: object, *, where: str) -> Config:
    """The dataclass that a mapping describes; ``ConfigError`` for what does not fit, with its place and a suggestion.

    Args:
        cls: A dataclass; its fields may be dataclasses, tuples, ``Literal`` and optional.
        data: What TOML or JSON gives.
        where: Name for messages: the file, or the name of the recipe.
    """
    try:
        return from_json(cls, data, where=where)
    except ModelError as error:
        raise ConfigError(str(error)) from error


def config_data(config: DataclassInstance) -> dict[str, Any]:
    """The configuration as plain dicts and lists, as JSON holds them; :func:`build_config` reads them back."""
    data: dict[str, Any] = json.loads(json.dumps(to_json(config)))
    return data


def read_config(path: str | Path) -> dict[str, Any]:
    """The fields in a .toml or .json file; ``ConfigError`` if it cannot be read."""
    path = Path(path)
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise ConfigError(f"{path} is no configuration: expected a file ending in .toml or .json")
    try:
        data = readers[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected named fields, got {type(data).__name__}")
    return data


def override(data: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of the fields with settings such as ``cc.lr=1e-4`` applied in order.

    A value is read as TOML (``0.1``, ``true``, ``["a", "b"]``), ``none`` as absent, and anything else as text.
    """
    changed = deepcopy(dict(data))
    for setting in settings:
        name, equals, text = setting.partition("=")
        *sections, last = name.strip().split(".")
        if not equals or not last or not all(sections):
            raise ConfigError(f"got {setting!r}, expected a field and its value, such as cc.lr=1e-4")
        place = changed
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"cannot set {name.strip()}: {section} is a value, not a group of fields")
            place = inner
        place[last] = _value(text.strip())
    return changed


def _value(text: str) -> Any:  # noqa: ANN401 - whatever TOML can hold
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
