"""Values of metadata as every part of an index can hold them: JSON of finite numbers, integers of 64 bits, or text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_DEEPEST = 200


def storable(metadata: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """Metadata that can be stored, and a note on what could not.

    A number that is not finite becomes null; an integer of more than 64 bits becomes text, so that it keeps its digits.
    """
    kept: dict[str, Any] = {}
    odd: list[str] = []
    try:
        for name, value in metadata.items():
            kept[name], whole = _storable(value, _DEEPEST)
            odd += [] if whole else [name]
    except RecursionError:
        return None, f"metadata left out: nested more than {_DEEPEST} deep"
    names = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
    note = f"no finite number, so null in the metadata: {names[:200]}" if odd else None
    return kept or None, note


def _storable(value: Any, deep: int) -> tuple[Any, bool]:  # noqa: ANN401
    """A value that can be stored, and whether nothing of it was left out."""
    if isinstance(value, float):
        return (value, True) if math.isfinite(value) else (None, False)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value), True
    if not isinstance(value, list | tuple | dict):
        return value, True
    if not deep:
        raise RecursionError
    if isinstance(value, list | tuple):
        parts = [_storable(each, deep - 1) for each in value]
        return [part for part, _ in parts], all(whole for _, whole in parts)
    named = {name: _storable(each, deep - 1) for name, each in value.items()}
    return {name: part for name, (part, _) in named.items()}, all(whole for _, whole in named.values())


def finite(value: Any) -> Any:  # noqa: ANN401
    """A value whose JSON every reader takes: null for numbers that are not finite."""
    return _storable(value, _DEEPEST)[0]


def parsed(metadata: str) -> dict[str, Any]:
    """The metadata of an item; null for numbers that are not finite, which earlier releases stored.

    Raises:
        ValueError: it is no JSON object.
    """
    found = json.loads(metadata, parse_constant=lambda _: None)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, got {type(found).__name__}")
    return found


EMBEDDED = "@image"
"""Name in stored metadata of what the image file says of itself: its capture time, and which other names it gave."""


def with_embedded(
    metadata: Mapping[str, Any] | None, told: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Metadata with what the image file says of itself, where nothing else says it.

    Args:
        metadata: may have such an entry already, which stays without ``told``.
        told: ``time``, ``ns`` and ``source`` of the capture time, and ``values``: metadata by name; each may be absent.
    """
    own, stored = split_embedded(metadata)
    told = told or stored
    if not told:
        return own or None
    values: Mapping[str, Any] = told.get("values", {})
    free = {name: value for name, value in values.items() if name not in own}
    entry = {name: told[name] for name in ("time", "ns", "source") if name in told}
    entry |= {"names": list(free)} if free else {}
    entry |= {"hidden": {n: v for n, v in values.items() if n in own}} if len(free) < len(values) else {}
    return {**own, **free, EMBEDDED: entry}


def split_embedded(metadata: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata without what the image file says of itself; and that, as ``with_embedded`` takes it."""
    own = dict(metadata or {})
    entry = own.pop(EMBEDDED, None)
    if not isinstance(entry, dict):
        return own, {}
    names, hidden = entry.get("names"), entry.get("hidden")
    listed = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    values = dict(hidden) if isinstance(hidden, dict) else {}
    values |= {name: own.pop(name) for name in listed if name in own}
    told = {name: entry[name] for name in ("time", "ns", "source") if name in entry}
    return own, told | ({"values": values} if values else {})
