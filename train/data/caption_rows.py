"""From one row of any table (named fields) to a group of captions: the layouts in which caption data are published.

- one text or a list: ``caption``, ``captions``, ``text``, ``texts``;
- by language: ``captions: {"en": "...", "zh": ["...", "..."]}``, also with ``[{"captions": [...], "kind": "..."}]``;
- by kind, as DreamLIP has them: ``raw_caption``, ``shortSV_captions``, ``longSV_captions``, ...;
- query and answers, as in the training data of E5 and Echo embeddings: ``query``, ``positive``, ``negative``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from llm2clip.train.data.captions import Caption, CaptionFileError, CaptionGroup, SkipReport, checked_text

PLAIN = ("caption", "captions", "text", "texts")
"""Fields with a text or texts, in any language and of any kind."""
KEYS = (
    "key",
    "__key__",
    "id",
    "image",
    "image_id",
    "file_name",
    "filename",
    "image path",
    "image_path",
    "path",
    "url",
)
"""Fields that name the image, in order of preference; case does not matter."""
LANGUAGES = ("language", "lang", "locale")
"""Fields with the language of the row's texts."""
_KIND = re.compile(r"(raw|short|long|dense)\w*?_?captions?", re.IGNORECASE)
_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?")
_TRIPLET = {"query": "query", "positive": "positive", "pos": "positive"}
_NEGATIVES = ("negative", "negatives", "neg")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which fields hold captions, where their names do not say."""

    captions: tuple[str, ...] = ()
    """Fields with texts; empty: found by name. One named like a language (``en``, ``zh``) has texts in it."""
    key: str | None = None
    """Field that names the image; ``None``: found by name."""
    language: str | None = None
    """Language of all texts of which the file says nothing."""


def group_of(
    row: Mapping[str, Any], *, name: str, source: str, columns: Columns, report: SkipReport
) -> CaptionGroup | None:
    """The group in a row, or ``None`` if it has no caption, which is counted.

    Args:
        row: Field -> value.
        name: Name of the row for messages, and its key if it has none.
        source: Data set it comes from.
        columns: Which fields to read.
        report: Where skipped texts are counted.
    """
    key = _key(row, columns) or name
    language = next((str(row[field]) for field in LANGUAGES if row.get(field)), columns.language)
    kept: list[Caption] = []
    seen = set()
    for caption in _captions(row, columns, language):
        text, problem = checked_text(caption.text)
        if not problem and text in seen:
            problem = "caption twice for one image"
        if problem:
            report.skip(problem, name)
            continue
        seen.add(text)
        kept.append(Caption(text, caption.language, caption.kind))
    if not kept:
        report.skip("no caption", name)
        return None
    negatives = [
        checked_text(text)[0] for field in _NEGATIVES for text in _texts(row.get(field)) if field in row
    ]
    return CaptionGroup(
        key, tuple(kept), source, tuple(text for text in negatives if text and text not in seen)
    )


def caption_fields(names: Mapping[str, Any] | list[str], columns: Columns, *, where: str) -> list[str]:
    """The fields that hold captions; ``CaptionFileError`` listing all if there is none, or not those asked for."""
    fields = list(names)
    if missing := [field for field in columns.captions if field not in fields]:
        close = get_close_matches(missing[0], fields, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise CaptionFileError(f"{where} has no column {missing[0]!r}{hint} Its columns: {_listed(fields)}")
    found = list(columns.captions) or [
        field for field in fields if field in PLAIN or field in _TRIPLET or _KIND.fullmatch(field)
    ]
    if not found:
        close = [match for field in fields for match in get_close_matches(field.lower(), PLAIN, n=1)]
        hint = f" (was {close[0]!r} meant?)" if close else ""
        raise CaptionFileError(
            f"{where} has no column of captions{hint}. Its columns: {_listed(fields)}. Expected caption, text, "
            "raw_caption, short_caption, long_caption or query and positive, or name them: columns.captions"
        )
    return found


def _captions(row: Mapping[str, Any], columns: Columns, language: str | None) -> Iterator[Caption]:
    for field in columns.captions or row:
        value = row.get(field)
        if field in _TRIPLET and not columns.captions:
            yield from (Caption(text, language, _TRIPLET[field]) for text in _texts(value))
        elif field in PLAIN and isinstance(value, Mapping):
            for code, inner in value.items():
                if inner is not None:  # a language that other rows of a table have
                    yield from _nested(inner, str(code))
        elif field in columns.captions or field in PLAIN or _KIND.fullmatch(field):
            kind = _KIND.fullmatch(field)
            spoken = field if field in columns.captions and _CODE.fullmatch(field) else language
            yield from (Caption(text, spoken, kind[1].lower() if kind else "") for text in _texts(value))


def _nested(value: Any, language: str) -> Iterator[Caption]:  # noqa: ANN401 - parsed JSON
    """Texts of one language: a text, a list of texts, or a list of objects with texts of one kind."""
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, Mapping):
            kind = str(item.get("kind", ""))
            inner = next((item[field] for field in PLAIN if field in item), None)
            yield from (Caption(text, language, kind) for text in _texts(inner))
        else:
            yield Caption(item, language)


def _texts(value: Any) -> list[Any]:  # noqa: ANN401 - parsed JSON
    """The texts in a field: one, a list, or a list written as JSON in a cell of a table."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def _key(row: Mapping[str, Any], columns: Columns) -> str:
    if columns.key is not None:
        named = row.get(columns.key)
        return "" if named is None else str(named)
    lower = {field.lower(): field for field in row}
    found = next((row[lower[name]] for name in KEYS if lower.get(name) and row[lower[name]]), "")
    return str(found) if isinstance(found, str | int) else ""


def _listed(fields: list[str]) -> str:
    shown = ", ".join(fields[:20])
    return shown + (f" and {len(fields) - 20} more" if len(fields) > 20 else "")
