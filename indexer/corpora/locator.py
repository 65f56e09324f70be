"""Reads an indexed image again, by its key and the locator of its record.

A locator is None (the whole file that the key names) or a JSON object: ``path``, the file below the root of the
corpus; ``offset`` and ``size``, its byte span there; or ``zip``, ``row`` and ``column``, or ``time`` for those
containers. It may come from an untrusted index, so it is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm2clip.indexer.core.errors import IndexDamagedError, IndexerError
from llm2clip.indexer.core.index_paths import BY_NAME, is_elsewhere, uri_of
from llm2clip.indexer.records.files import content_hash, read_span, read_whole


def read_located(
    locator: str | None, *, key: str, corpus: Mapping[str, str], hash: bytes | None = None
) -> bytes:
    """The encoded image of an item, as it is in the corpus now.

    ``corpus`` is the identity of its corpus. In a container, content of another ``hash`` is refused.
    """
    place = _parsed(locator, key)
    path = place.pop("path", None)
    within = key if locator is None else path
    if not isinstance(within, str) or (corpus["kind"] not in BY_NAME and _leads_out(within)):
        raise IndexDamagedError(f"the index names a file outside its corpus: {within!r}")
    where = uri_of(within, corpus=corpus)
    try:
        content = _read(where, place)
    except IndexerError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise IndexDamagedError(f"the index holds no usable locator for {key}: {locator:.200}") from error
    if place and "time" not in place and hash is not None and content_hash(content) != hash:
        raise IndexerError(f"{where} changed since it was indexed: build the index again")
    return content


def _parsed(locator: str | None, key: str) -> dict[str, Any]:
    try:
        place = json.loads(locator) if locator is not None else {}
        if not isinstance(place, dict):
            raise ValueError(f"expected an object, got {type(place).__name__}")
    except (ValueError, RecursionError) as error:
        raise IndexDamagedError(f"the index holds no usable locator for {key}: {error}") from error
    return place


def _leads_out(path: str) -> bool:
    return is_elsewhere(path) or ".." in path.replace("\\", "/").split("/")


def _read(where: str, place: Mapping[str, Any]) -> bytes:
    if "://" in where:
        from llm2clip.indexer.corpora.remote_store import local_copy, read_remote

        file = local_copy(where)
        if file is None and set(place) <= {"offset", "size"}:
            return read_remote(where, offset=place.get("offset"), size=place.get("size"))
        file = file or local_copy(where, fetch=True)
    else:
        file = Path(where)
    assert file is not None
    if "zip" in place:
        from llm2clip.indexer.containers.zip import read_packed

        return read_packed(file, place["zip"])
    if "row" in place:
        from llm2clip.indexer.containers.parquet import read_row

        return read_row(file, row=int(place["row"]), column=str(place["column"]))
    if "time" in place:
        from llm2clip.indexer.containers.video import read_frame

        return read_frame(file, seconds=float(place["time"]))
    if "offset" in place:
        return read_span(file, offset=int(place["offset"]), size=int(place["size"]))
    return read_whole(file)
