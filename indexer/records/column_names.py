"""Column names that hold paths and captions in tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PATH_COLUMNS = (
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "image_path",
    "path",
    "file",
    "image",
    "img",
    "picture",
    "photo",
    "image_url",
    "url",
    "uri",
    "文件名",
    "文件路径",
    "路径",
    "图片",
)
"""Columns that say where an image is, the first that there is; case does not matter."""


CAPTION_COLUMNS = ("caption", "text", "captions", "描述", "说明", "标题")
"""Columns that hold its caption, likewise."""


def column_of(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted names that there is, as it is written there."""
    written = {name.strip().lower(): name for name in reversed(names)}
    return next((written[name] for name in wanted if name in written), None)


def split_caption(cells: dict[str, Any], column: str | None) -> tuple[str | None, dict[str, Any]]:
    """The caption and the other cells; of a list of captions the first, and the list stays among the others."""
    value = cells.get(column) if column is not None else None
    if isinstance(value, list) and value and isinstance(value[0], str) and value[0].strip():
        return value[0].strip(), cells
    if value is None or isinstance(value, list | dict):
        return None, cells
    return str(value).strip() or None, {name: cell for name, cell in cells.items() if name != column}
