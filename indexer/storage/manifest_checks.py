"""Checks the entries of a manifest before they are used: the folder may come from a stranger."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm2clip.indexer.storage.file_names import MAX_GENERATION, is_name

_MAX_DIM = 65_536
_SHOWN = 80


def invalid_entries(content: Mapping[str, Any]) -> Iterator[str]:
    """The entries of another type than ours, out of range, or that do not fit one another, as text.

    Raises:
        TypeError, AttributeError, LookupError: entries inside an entry are missing, or it is of another type.
    """
    for name in ("index_id", "created", "written_by", "encoder_source"):
        if not isinstance(content[name], str):
            yield name
    for name in ("generation", "rows", "items", "bad", "items_bytes"):
        if not _is_count(content[name]):
            yield name
    if content["items"] > content["rows"]:
        yield "items"
    if not content["generation"]:
        yield "generation"
    if not re.fullmatch("[0-9a-f]{16}", content["items_checksum"]):
        yield "items_checksum"
    yield from invalid_sources(content["sources"])
    yield from invalid_encoder(content["encoder"])
    decoding = content["decoding"]
    if decoding is not None and not _is_number(decoding["margin"]):
        yield "decoding.margin"
    yield from _files(content)


def invalid_encoder(encoder: Any) -> Iterator[str]:  # noqa: ANN401
    """The invalid entries of the identity of an encoder."""
    if not isinstance(encoder["name"], str) or not all(
        value is None or isinstance(value, str | int | float) for value in encoder.values()
    ):
        yield "encoder"
    if not _is_count(encoder["dim"]) or not 0 < encoder["dim"] <= _MAX_DIM:
        yield "encoder.dim"


def invalid_sources(sources: Any) -> Iterator[str]:  # noqa: ANN401
    """The invalid entries of a list of corpora."""
    if not isinstance(sources, list) or not sources:
        yield "sources"
    for source in sources:
        if not isinstance(source, dict) or not all(isinstance(value, str) for value in source.values()):
            yield "sources: expected texts"
        elif "spec" not in source or (source["kind"] != "sample" and "root" not in source):
            yield "sources: expected kind, spec and root"


def _files(content: Mapping[str, Any]) -> Iterator[str]:
    """Names that are not ours, which may lead out of the folder, and numbers of rows that do not fit."""
    if not is_name(content["items_file"], "items"):
        yield f"items_file {_short(content['items_file'])}"
    rows, names = 0, []
    for segment in content["segments"]:
        names.append(segment["file"])
        if not is_name(segment["file"], "vectors"):
            yield f"segments.file {_short(segment['file'])}"
        if not _is_count(segment["rows"]) or segment["first_id"] != rows:
            yield "segments.rows"
        rows += segment["rows"]
    if rows != content["rows"]:
        yield f"rows: the segments have {rows:,}"
    ann = content["ann"]
    if ann is not None:
        names.append(ann["file"])
        if not is_name(ann["file"], "candidates"):
            yield f"ann.file {_short(ann['file'])}"
        if not _is_count(ann["rows"]) or ann["rows"] > rows:
            yield "ann.rows"
        if not isinstance(ann["plan"]["kind"], str):
            yield "ann.plan.kind"
    if sorted(names) != sorted(content["files"]):
        yield "files: expected those of segments and ann, each once"
    for record in content["files"].values():
        if not _is_count(record["bytes"]) or not isinstance(record["sha256"], str):
            yield "files.bytes"


def _short(value: object) -> str:
    return repr(value)[:_SHOWN]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_GENERATION


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
