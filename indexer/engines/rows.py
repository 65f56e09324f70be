"""Makes the rows that are written to an engine from those of an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

from llm2clip.indexer.engines.table import Row
from llm2clip.indexer.filters.patterns import folded, normal
from llm2clip.indexer.search.index import Index
from llm2clip.indexer.storage.items_reader import ShownRow

_FIELDS = (
    "key",
    "path",
    "time",
    "size",
    "width",
    "height",
    "pixels",
    "caption",
    "hash",
    "copies",
    "time_source",
)


def rows_of(index: Index, *, at_once: int) -> Iterator[list[Row]]:
    """The rows of all images by id, in lists of at most ``at_once``."""
    for items in index.items.each():
        for start in range(0, len(items), at_once):
            part = items[start : start + at_once]
            fields = index.fields_of([item.id for item in part], _FIELDS)
            vectors = index.take([item.id for item in part])
            for_hits = [
                [*item[1:3], item.caption, item.metadata, item.width, item.height, item.mtime_ns, item.locator,
                 item.hash.hex()]
                for item in part
            ]  # fmt: skip
            yield [
                _row(item.id, dict(zip(_FIELDS, fields[item.id], strict=True)), item.metadata, shown, vector)
                for item, shown, vector in zip(part, for_hits, vectors, strict=True)
            ]


def _row(
    id: int, fields: dict[str, Any], metadata: str | None, shown: list[Any], vector: np.ndarray[Any, Any]
) -> Row:
    composed = {name: _text(value) if isinstance(value, str) else value for name, value in fields.items()}
    told = _without_null(json.loads(metadata, parse_constant=lambda _: None)) if metadata else None
    columns: dict[str, Any] = {
        **composed,
        **{
            f"{name}_folded": None if composed[name] is None else folded(composed[name])
            for name in ("key", "path", "caption")
        },
        "metadata": _json(told, _text),
        "metadata_folded": _json(told, lambda text: folded(_text(text))),
        "item": json.dumps(shown),
    }
    hashed = blake2b(json.dumps(columns).encode(), digest_size=8)
    hashed.update(np.ascontiguousarray(vector).tobytes())
    digest = int.from_bytes(hashed.digest(), "big", signed=True)
    return Row(id=id, digest=digest, vector=vector, **columns)


def _text(text: str) -> str:
    """Text as every engine can hold it: no NUL, no lone surrogates."""
    return normal(text).replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _json(told: Any, text: Any) -> str | None:  # noqa: ANN401
    return None if told is None else json.dumps(_mapped(told, text), ensure_ascii=False)


def _mapped(value: Any, text: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {_text(name): _mapped(each, text) for name, each in value.items()}
    return [_mapped(each, text) for each in value] if isinstance(value, list) else value


def _without_null(value: Any) -> Any:  # noqa: ANN401
    """Without names whose value is null: to a filter they are missing."""
    if isinstance(value, dict):
        return {name: _without_null(each) for name, each in value.items() if each is not None}
    return [_without_null(each) for each in value] if isinstance(value, list) else value


def shown_row(id: int, item: str) -> ShownRow:
    """A row of an index as hits are made of it, from ``Row.item``."""
    source, key, caption, metadata, width, height, mtime_ns, *_ = json.loads(item)
    return id, source, key, caption, metadata, width, height, mtime_ns


def located(item: str) -> tuple[int, str, str | None, bytes]:
    """Source, key, locator and hash of an image, from ``Row.item``."""
    source, key, *_, locator, hash = json.loads(item)
    return source, key, locator, bytes.fromhex(hash)
