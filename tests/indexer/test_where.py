"""The language of filters, against a second reading of it in plain Python."""

import json
import sqlite3
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm2clip.indexer.filters.compile import compile_where, metadata_names
from llm2clip.indexer.filters.sandbox import guard
from llm2clip.indexer.storage.items_file import connect
from llm2clip.indexer.storage.items_schema import NEVER, SCHEMA


def at(text: str) -> int:
    """Nanoseconds since 1970 of an ISO time in UTC."""
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return round(moment.timestamp()) * 10**9


IMAGES: list[dict[str, Any]] = [
    {"key": "lake/boat.jpg", "size": 900, "mtime_ns": at("2024-02-29T23:59:59"), "width": 640, "height": 480,
     "caption": "A red Boat, 100% wood", "metadata": {"author": "Ann", "year": 2024, "tags": ["boat", "lake"]}},
    {"key": "lake/Éva_1.png", "size": 2_000_000, "mtime_ns": at("2024-03-01T00:00:00"), "width": 480, "height": 640,
     "caption": "ЛОДКА на озере", "metadata": {"author": "Éva", "year": "2024", "tags": "lake", "public": True}},
    {"key": "00.tar#dog.jpg", "path": "00.tar", "size": 0, "mtime_ns": 0, "width": 100, "height": 100,
     "caption": None, "metadata": {"author": None, "year": 1999.5, "camera": {"name of it": "D7"}, "public": False}},
    {"key": "it's.jpg", "size": 5, "mtime_ns": at("2023-12-31T23:59:59"), "width": 4000, "height": 3000,
     "caption": "a_b\\c; DROP TABLE items --", "metadata": {}, "hash": b"\xab" * 16},
    {"key": "copy.jpg", "size": 5, "mtime_ns": at("2025-01-01T00:00:00"), "width": 4000, "height": 3000,
     "caption": "", "metadata": {"tags": [1, True, None, {"a": 1}, "x"]}, "hash": b"\xab" * 16},
]  # fmt: skip


def guarded(path: Path) -> sqlite3.Connection:
    """An items file, opened as for filters."""
    connection = connect(path)
    guard(connection)
    return connection


def table(path: Path, images: list[dict[str, Any]]) -> sqlite3.Connection:
    """An items table of some images, opened as filters see it."""
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA)
        for number, given in enumerate(images):
            row = {"path": None, "hash": number.to_bytes(16, "big"), "added": 1, "removed": NEVER, **given}
            row |= {"source": 0, "checksum": 0}
            row["metadata"] = json.dumps(row["metadata"], ensure_ascii=False) if row["metadata"] else None
            names = ", ".join(row)
            marks = ", ".join(f":{name}" for name in row)
            db.execute(f"INSERT INTO items (id, {names}) VALUES ({number}, {marks})", row)
    db.close()
    return guarded(path)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    """Ids of the images that a filter lets through."""
    items = table(tmp_path_factory.mktemp("items") / "items.db", IMAGES)

    def ids(text: str) -> list[int]:
        mask = compile_where(text).mask(items, rows=len(IMAGES), commit=1)
        assert mask.shape == (len(IMAGES),)
        assert mask.dtype == np.bool_
        return np.flatnonzero(mask).tolist()

    yield ids
    items.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width > height", [0, 3, 4]),
        ("WIDTH=100 or Height == 3000", [2, 3, 4]),
        ("1000 <= width", [3, 4]),
        ("1000 != width AND NOT width > 1000", [0, 1, 2]),
        ("width BETWEEN 100 AND 480", [1, 2]),
        ("width NOT BETWEEN 100 AND 480", [0, 3, 4]),
        ("width IN (100, 640.0)", [0, 2]),
        ("pixels >= 12e6", [3, 4]),
        ("width = 640 OR width = 480 AND height = 480", [0]),
        ("(width = 640 OR width = 480) AND height = 480", [0]),
        ("NOT width = 640 AND height = 640", [1]),
        ("size < 1kB", [0, 3, 4]),
        ("size > 1.9MB", [1]),
        ("size = 2MB", [1]),
        ("size <= 0.875KiB", [3, 4]),
        ("size IS NULL", [2]),
        ("NOT size > 0", []),
        ("time IS NOT NULL", [0, 1, 3, 4]),
        ("time = '2024'", [0, 1]),
        ("time != '2024'", [3, 4]),
        ("time > '2024'", [4]),
        ("time >= '2024'", [0, 1, 4]),
        ("time <= '2024-02'", [0, 3]),
        ("time < '2024-02'", [3]),
        ("'2024-02-29' < time", [1, 4]),
        ("time = '2024-02-29'", [0]),
        ("time = '2024-02-29 23:59'", [0]),
        ("time = '2024-03-01T01:30:00+01:30'", [1]),
        ("time BETWEEN '2024-02' AND '2024-03'", [0, 1]),
        ("time IN ('2023', '2025-01-01')", [3, 4]),
        ("time >= '9999' OR time < '0001'", []),
        ("key = 'it''s.jpg'", [3]),
        ("key > 'k'", [0, 1]),
        ("path = '00.tar'", [2]),
        ("path GLOB 'lake/*'", [0, 1]),
        ("key GLOB '[a-i]*.jpg'", [3, 4]),
        ("key LIKE '%.JPG'", [0, 2, 3, 4]),
        ("caption LIKE '%RED _oat%'", [0]),
        ("caption CONTAINS '100%'", [0]),
        ("caption CONTAINS '_b\\c'", [3]),
        ("caption LIKE '%\\%%'", [0]),
        ("caption CONTAINS 'лодка'", [1]),
        ("caption LIKE 'л_дка%озере'", [1]),
        ("key CONTAINS 'e\u0301VA'", [1]),
        ("caption NOT CONTAINS 'лодка'", [0, 3, 4]),
        ("caption IS NULL", [2]),
        ("caption = ''", [4]),
        ("meta.author = 'Ann'", [0]),
        ("meta.author != 'Ann'", [1]),
        ("meta.author IS NULL", [2, 3, 4]),
        ("meta.year = 2024", [0]),
        ("meta.year = '2024'", [1]),
        ("meta.year >= 1999", [0, 2]),
        ("meta.year < '3'", [1]),
        ("meta.public = true", [1]),
        ("meta.public != TRUE", [2]),
        ("meta.camera.\"name of it\" LIKE 'd%'", [2]),
        ("meta.tags[1] = 'lake'", [0]),
        ("meta.tags HAS 'lake'", [0, 1]),
        ("meta.tags NOT HAS 'lake'", [4]),
        ("meta.tags HAS 1", [4]),
        ("meta.camera HAS 'D7'", []),
        ("meta.author IN ('Ann', 'Éva', 'x')", [0, 1]),
        ('meta.tags = \'["boat","lake"]\'', []),
        ("meta.tags != 'lake'", [0, 4]),
        ("meta.tags < 'z'", [1]),
        ("meta.tags IN ('lake', '[\"boat\",\"lake\"]')", [1]),
        ('meta.tags CONTAINS \'"BOAT","\'', [0]),
        ("meta.year LIKE '1999._'", [2]),
        ("meta.public LIKE '1'", [1]),
        ("meta.public > 0", [1]),
        ("copies > 1", [3, 4]),
        ("hash = 'abababababababababababababababab'", [3, 4]),
        ("caption CONTAINS '; DROP TABLE items --'", [3]),
    ],
)
def test_where_mask_of_each_construct(text, expected, found):
    assert found(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key = 'é.jpg'", [0, 1]),
        ("key != 'é.jpg'", [2, 3]),
        ("key IN ('x', 'é.jpg')", [0, 1]),
        ("key BETWEEN 'é' AND 'ê'", [0, 1, 3]),
        ("key GLOB 'é.*'", [0, 1]),
        ("key GLOB '[à-ÿ].jpg'", [0, 1]),
        ("path = 'é.jpg'", [0, 1]),
        ("caption = 'Å'", [0, 1, 2]),
        ("caption = key", [3]),
        ("meta.place = 'Köln'", [0, 1]),
        ("meta.tags HAS 'ü'", [0, 1]),
    ],
)
def test_where_mask_does_not_depend_on_the_form_of_text(text, expected, tmp_path):
    """NFC, NFD, and the sign of Ångström, which is Å in both; of filters and of items."""
    decomposed = {form: unicodedata.normalize(form, "é.jpg Å Köln ü").split(" ") for form in ("NFC", "NFD")}
    images = [
        {"key": key, "caption": caption, "metadata": {"place": place, "tags": [tag]}}
        for key, caption, place, tag in decomposed.values()
    ]
    images.append({"key": "e.jpg", "caption": "\u212b", "metadata": {"tags": ["u"]}})
    images.append({"key": "ê", "caption": "e\u0302", "metadata": None})
    images = [{"size": 1, "mtime_ns": 0, "width": 1, "height": 1, **image} for image in images]
    items = table(tmp_path / "items.db", images)
    for form in ("NFC", "NFD"):
        mask = compile_where(unicodedata.normalize(form, text)).mask(items, rows=4, commit=1)
        assert np.flatnonzero(mask).tolist() == expected
    items.close()


def test_where_mask_respects_the_generation(tmp_path):
    same = {**IMAGES[0], "hash": b"\1" * 16}
    rows = [{**same, "removed": 3}, {**same, "key": "b", "added": 2}, {**same, "key": "c", "added": 4}]
    items = table(tmp_path / "items.db", rows)
    for text in ("width > 0", "copies > 0"):
        where = compile_where(text)
        there = [np.flatnonzero(where.mask(items, rows=3, commit=n)).tolist() for n in range(5)]
        assert there == [[], [0], [0, 1], [1], [1, 2]]
    assert compile_where("copies = 2").mask(items, rows=3, commit=2).tolist() == [True, True, False]
    assert compile_where("copies = 2").mask(items, rows=1, commit=2).tolist() == [True]
    items.close()


def test_where_mask_reads_metadata_that_earlier_releases_stored(tmp_path):
    odd = {"author": "Ann", "score": float("nan"), "top": float("inf")}
    items = table(tmp_path / "items.db", [*IMAGES, {**IMAGES[0], "key": "nan", "metadata": odd}])

    def ids(text: str) -> list[int]:
        return np.flatnonzero(compile_where(text).mask(items, rows=6, commit=1)).tolist()

    assert ids("meta.author = 'Ann'") == [0, 5]
    assert ids("meta.score IS NULL AND meta.top IS NULL AND meta.author IS NOT NULL") == [0, 1, 5]
    items.close()


def test_where_mask_of_long_integers(tmp_path):
    values = [2**63 - 1, 2**63 - 2, -(2**63), str(2**64 - 1), str(2**64 - 2), "18446744073709551615.0"]
    rows = [{**IMAGES[0], "key": str(n), "metadata": {"id": value}} for n, value in enumerate(values)]
    items = table(tmp_path / "items.db", rows)
    for text, expected in [
        ("meta.id = 9223372036854775807", [0]),
        ("meta.id >= 9223372036854775807", [0]),
        ("meta.id < -9223372036854775807", [2]),
        ("meta.id = 18446744073709551615", [3]),
        ("meta.id = +018446744073709551615", [3]),
        ("meta.id HAS 18446744073709551614", [4]),
        ("meta.id IN (1, 18446744073709551614, 9223372036854775806)", [1, 4]),
        ("meta.id < 18446744073709551614", [0, 1, 2]),
        ("meta.id = -18446744073709551614", []),
    ]:
        assert np.flatnonzero(compile_where(text).mask(items, rows=6, commit=1)).tolist() == expected, text
    items.close()


def test_metadata_names_are_written_as_in_filters(tmp_path):
    broken = {**IMAGES[0], "key": "nan", "metadata": {"NaN": float("nan")}}
    strange = {**IMAGES[0], "key": "strange", "metadata": {"name of it": 1, "名": 2, "1st": 3}}
    items = table(tmp_path / "items.db", [*IMAGES, broken, strange])
    names = metadata_names(items)
    known = ["meta.author", "meta.camera", "meta.public", "meta.tags", "meta.year", "meta.名"]
    assert sorted(names) == sorted([*known, 'meta."1st"', 'meta."name of it"'])
    for name in names:
        assert compile_where(f"{name} IS NOT NULL").mask(items, rows=7, commit=1).any()
    items.close()
