"""Frozen dataclasses to JSON and strictly back: unknown keys, missing keys and wrong types are errors."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.path_safety import refuse_outside

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

_MAX_JSON = 64_000_000


def to_json(config: DataclassInstance) -> dict[str, Any]:
    """A dataclass as plain dicts, lists, strings and numbers."""
    return asdict(config)


def from_json(cls: type[Config], data: object, *, where: str) -> Config:
    """Build ``cls`` from what ``to_json`` gave.

    Args:
        cls: A dataclass whose fields are annotated with str, int, float, bool, enums, ``Literal``, tuples,
            optional values and other such dataclasses.
        data: Parsed JSON.
        where: What to call ``data`` in messages, e.g. ``"config.json: vision"``.

    Raises:
        ModelError: A key is unknown or missing, or a value has another type; the message names it.
    """
    if not isinstance(data, Mapping):
        raise ModelError(f"{where}: expected an object, got {_kind(data)}")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}
    check_keys(data, known, where=where)
    missing = [
        name
        for name, field in known.items()
        if name not in data and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ModelError(f"{where}: missing keys: {missing}")
    values = {name: _value(hints[name], value, where=f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from error


def read_object(path: Path, *, folder: Path | None = None) -> dict[str, Any]:
    """An object from a JSON file.

    Args:
        path: The file.
        folder: The model's folder, if the file lies deeper; it must not lead out of it.

    Raises:
        ModelError: The file cannot be read, leads out of its folder, is no JSON or holds something else.
    """
    refuse_outside(path, folder=folder)
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_JSON + 1)
        if len(text) > _MAX_JSON:
            raise ModelError(f"{path} is larger than {_MAX_JSON:,} bytes; is it a configuration?")
        data = json.loads(text)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ModelError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: expected an object, got {type(data).__name__}")
    return data


def check_keys(data: Mapping[str, Any], known: Mapping[str, Any], *, where: str) -> None:
    """Raise ``ModelError`` when ``data`` has a key that is not in ``known``, with the likely spelling."""
    unknown = [key for key in data if key not in known]
    if unknown:
        close = [match for key in unknown for match in get_close_matches(str(key), known, n=1)]
        hint = (
            f"; did you mean {', '.join(map(repr, close))}?"
            if close
            else f"; expected some of {sorted(known)}"
        )
        raise ModelError(f"{where}: unknown keys: {unknown}{hint}")


def _value(hint: Any, value: Any, *, where: str) -> Any:  # noqa: ANN401
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        inner = [arm for arm in get_args(hint) if arm is not type(None)]
        if value is None and len(inner) < len(get_args(hint)):
            return None
        return _value(inner[0], value, where=where)
    if origin is tuple:
        return _tuple(get_args(hint), value, where=where)
    if origin is Literal:
        return _one_of(get_args(hint), value, where=where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(_one_of([member.value for member in hint], value, where=where))
    if is_dataclass(hint):
        return from_json(typing.cast("type[DataclassInstance]", hint), value, where=where)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ModelError(f"{where}: expected {hint.__name__}, got {_kind(value)}")
    return value


def _tuple(arms: tuple[Any, ...], value: Any, *, where: str) -> tuple[Any, ...]:  # noqa: ANN401
    if not isinstance(value, list | tuple):
        raise ModelError(f"{where}: expected a list, got {_kind(value)}")
    if arms[-1] is Ellipsis:
        arms = arms[:1] * len(value)
    if len(arms) != len(value):
        raise ModelError(f"{where}: expected {len(arms)} values, got {len(value)}")
    return tuple(
        _value(arm, item, where=f"{where}[{n}]")
        for n, (arm, item) in enumerate(zip(arms, value, strict=True))
    )


def _one_of(allowed: typing.Sequence[Any], value: Any, *, where: str) -> Any:  # noqa: ANN401
    if value not in allowed:
        raise ModelError(f"{where}: expected one of {list(allowed)}, got {value!r}")
    return value


def _kind(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
