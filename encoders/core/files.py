"""Files of a model, none of them trusted: strict JSON configurations, size limits, links, and hashes."""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from llm2clip.encoders.core.errors import ModelError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

NEWER: Mapping[str, bool] = types.MappingProxyType({"newer": True})
"""Metadata of a field of a configuration that is newer than the first indexes."""
MOST = 1 << 24
"""Larger than any axis of a supported model."""
MOST_LAYERS = 1024
"""More blocks than any supported model has; they are built before the weights are compared with them."""
_MAX_JSON = 64_000_000
_LFS_POINTER = b"version https://git-lfs"
_ORIGIN = frozenset(
    {
        "__version__",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
    }
)
"""Keys of a ``config.json`` that say where a model came from, not what it computes."""
_SAMPLES, _SAMPLE = 64, 4096
"""Number of samples of a large file, and bytes of each."""


def to_json(config: DataclassInstance) -> dict[str, Any]:
    """A dataclass as plain dicts, lists, strings and numbers."""
    return asdict(config)


def identity_settings(config: DataclassInstance) -> dict[str, Any]:
    """As :func:`to_json`, without fields marked ``NEWER`` that have their default: encoders keep their identity."""
    told: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.metadata == NEWER and value == entry.default:
            continue
        inner = is_dataclass(value) and not isinstance(value, type)
        told[entry.name] = identity_settings(value) if inner else value
    return told


def from_json(cls: type[Config], data: object, *, where: str) -> Config:
    """Build ``cls`` from the output of ``to_json``; unknown keys, missing keys and wrong types are errors."""
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
    values = {}
    for name, value in data.items():
        hint, inner = hints[name], f"{where}.{name}"
        if get_origin(hint) in (Union, types.UnionType) and (
            value is not None or type(None) in get_args(hint)
        ):
            hint = _arm([arm for arm in get_args(hint) if (arm is type(None)) == (value is None)], value)
        read = from_json if isinstance(hint, type) and is_dataclass(hint) else _value
        values[name] = read(hint, value, where=inner)
    try:
        return cls(**values)
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from error


def _arm(arms: Sequence[Any], value: object) -> Any:  # noqa: ANN401
    """The arm of a union that a value is read as: the first dataclass that knows all of its keys."""
    keys = set(value) if isinstance(value, Mapping) else set()
    return next(
        (arm for arm in arms if is_dataclass(arm) and keys <= {field.name for field in fields(arm)}), arms[0]
    )


def _value(hint: Any, value: Any, *, where: str) -> Any:  # noqa: ANN401
    origin, arms = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ModelError(f"{where}: expected a list, got {_kind(value)}")
        arms = arms[:1] * len(value) if arms[-1] is Ellipsis else arms
        if len(arms) != len(value):
            raise ModelError(f"{where}: expected {len(arms)} values, got {len(value)}")
        return tuple(
            _value(arm, item, where=f"{where}[{n}]")
            for n, (arm, item) in enumerate(zip(arms, value, strict=True))
        )
    if is_dataclass(hint):
        return from_json(cast("type[DataclassInstance]", hint), value, where=where)
    is_enum = isinstance(hint, type) and issubclass(hint, Enum)
    if is_enum or origin is Literal:
        allowed: Sequence[object] = [member.value for member in hint] if is_enum else arms
        if value not in allowed:
            raise ModelError(f"{where}: expected one of {list(allowed)}, got {value!r}")
        return hint(value) if is_enum else value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ModelError(f"{where}: expected {hint.__name__}, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


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


def check_size(name: str, value: object, *, most: int = MOST) -> None:
    """Raise ``ValueError`` where a number is no size: not whole, not positive, or beyond ``most``."""
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most:,}, got {str(value)[:40]}")


def read_object(path: Path, *, folder: Path | None = None) -> dict[str, Any]:
    """An object from a JSON file."""
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


def refuse_outside(path: Path, *, folder: Path | None = None) -> None:
    """Raise ``ModelError`` where a file is a link, or lies behind one, that leads out of the model's folder.

    The cache of the Hugging Face hub is allowed: its ``snapshots`` are links to the ``blobs`` beside them.
    """
    home, target = (folder or path.parent).resolve(), path.resolve()
    blobs = [above.parent / "blobs" for above in home.parents if above.name == "snapshots"]
    if not any(target.is_relative_to(place) for place in (home, *blobs)):
        raise ModelError(f"{path} is a link that leads out of its folder, to {target}; put the file there")


def refuse_pointer(path: Path) -> None:
    """Refuse the pointer that a clone without Git LFS has in the place of a large file."""
    with path.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise ModelError(
            f"{path} is a pointer of Git LFS, not the file itself; run git lfs pull in the clone, or download the file"
        )


def settings_sha256(settings: Mapping[str, Any], *, files: Iterable[Path]) -> str:
    """SHA-256, in hexadecimal, of all that shapes vectors besides weights; tells encoders of equal weights apart.

    The order of keys does not count, nor the folder of ``files``; leave out what is only for people.
    """
    contents = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    canonical = json.dumps({"settings": settings, "files": contents}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def without_origin(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as transformers stores them, without what says where a model came from."""
    return {
        key: without_origin(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in _ORIGIN
    }


def sampled_sha256(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file's size and of samples all over it; gigabytes take milliseconds.

    Training changes every matrix of a model, so two of the same shapes differ in some sample. A file that was altered
    in one place on purpose may not; where that matters, hash the whole.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE:
            digest.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
