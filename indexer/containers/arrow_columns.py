"""The columns of a table: images, caption, and the others as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from llm2clip.indexer.records.tabular import CAPTION_COLUMNS, column_of

if TYPE_CHECKING:
    import pyarrow as pa

    from llm2clip.indexer.containers.arrow_files import Table

_NAMES = "image img picture photo jpg jpeg png webp bytes content image_bytes data"
_BYTES_COLUMNS = frozenset(_NAMES.split())
"""Columns of plain bytes that hold images; of other names only a single one."""
_DEEPEST = 20


class Columns(NamedTuple):
    """The roles of the columns of a table."""

    images: tuple[str, ...]
    """Columns of bytes, or of structs with a field ``bytes``."""
    named: frozenset[str]
    """Those of ``images`` that have a field ``path``."""
    caption: str | None
    """The column of captions."""
    others: tuple[str, ...]
    """Columns for caption and metadata."""
    labels: Mapping[str, Sequence[str]]
    """Column -> names that its numbers stand for."""
    texts: frozenset[str] = frozenset()
    """Columns of integers of which some have more than 64 bits with their sign: all are kept as text."""


def columns_of(schema: pa.Schema) -> Columns:
    """The roles of the columns of a schema; ``images`` is empty if none holds any."""
    import pyarrow as pa

    features = _features(schema)
    structs = [field.name for field in schema if _holds_bytes(field.type, pa)]
    plain = [field.name for field in schema if _is_bytes(field.type, pa)]
    images = [
        name
        for name in schema.names
        if (name in structs and features.get(name, {}).get("_type", "Image") == "Image")
        or (name in plain and (name.lower() in _BYTES_COLUMNS or (not structs and len(plain) == 1)))
    ]
    named = [
        name for name in images if name in structs and schema.field(name).type.get_field_index("path") >= 0
    ]
    others = [name for name in schema.names if name not in structs and name not in plain]
    return Columns(
        images=tuple(images),
        named=frozenset(named),
        caption=column_of(others, CAPTION_COLUMNS),
        others=tuple(others),
        labels={
            name: feature["names"]
            for name, feature in features.items()
            if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
        },
    )


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The column features of a Hugging Face data set."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _is_bytes(kind: Any, pa: Any) -> bool:  # noqa: ANN401
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_bytes(kind: Any, pa: Any) -> bool:  # noqa: ANN401
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    return _is_bytes(kind.field("bytes").type, pa)


def long_columns(table: Table, columns: Columns) -> frozenset[str]:
    """The columns of unsigned integers with one of 2**63 or more, which only text can hold."""
    import pyarrow as pa

    names = [name for name in columns.others if table.schema.field(name).type == pa.uint64()]
    found = set[str]()
    for group in table.groups(columns.images[0]) if names else ():
        with suppress(pa.ArrowException, OSError):  # damaged: its rows say so
            for row in table.rows(group, columns=names):
                found.update(name for name, value in row.items() if (value or 0) >= 2**63)
    return frozenset(found)


def plain_values(row: Mapping[str, Any], *, columns: Columns) -> dict[str, Any]:
    """A row as JSON values: dates as ISO 8601, labels by name; without bytes and missing values."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        names = columns.labels.get(name)
        if names is not None and isinstance(value, int) and 0 <= value < len(names):
            value = names[value]
        elif name in columns.texts and value is not None:
            value = str(value)
        plain = _plain(value, _DEEPEST)
        if plain is not None:
            found[name] = plain
    return found


def _plain(value: Any, deep: int) -> Any:  # noqa: ANN401
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, Mapping) and deep:
        return {str(name): _plain(each, deep - 1) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple) and deep:
        return [_plain(each, deep - 1) for each in value]
    return None
