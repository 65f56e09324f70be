"""The language of filters, against a second reading of it in plain Python."""

import fnmatch
import json
import re
import sqlite3
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2clip.indexer.filters.compile import WhereError, compile_where, metadata_names
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


TEXTS = [
    "",
    "a",
    "A",
    "ab",
    "b%a",
    "a_b",
    "Ω",
    "ωа",
    "\\",
    "a'b",
    '"',
    "stra\u00dfe",
    "STRASSE",
    "e\u0301",
    "\u00e9",
    "ka\u0301",
    "1",
    "[1]",
]
NUMBERS = [-1, 0, 1, 2, 3.5, 10**12, 1234567890123456789, 0.1 + 0.2]
VALUES = [*NUMBERS, *TEXTS, True, False, [], [1, "ab", None], ["stra\u00dfe", 3.5, True], {"a": [1]}]
NAMES = ["a", "b"]
PIECES = ["%", "_", "a", "B", "ss", "\u00df", "\\%", "\\_", "\u00e9", "1", "[", "ω", "."]


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).upper()
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "number" if isinstance(value, int | float) else "other"


def _ordered(sign: str, left: Any, right: Any) -> bool | None:
    if left is None:
        return None
    same = _kind(left) == _kind(right)
    if sign in ("=", "!="):
        return (same and _normal(left) == _normal(right)) == (sign == "=")
    if not same:
        return None
    if isinstance(left, str):
        left, right = _normal(left).encode(), _normal(right).encode()
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[sign]


def _normal(value: Any) -> Any:
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def _folded(text: str) -> str:
    return _normal(_normal(text).casefold())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "1" if value else "0"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _like(text: str, pattern: str) -> bool:
    """Every way to place the pieces, as the backtracking of ``re`` tries them."""
    parts = re.findall(r"\\.|.", _folded(pattern), re.DOTALL)
    wild = {"%": ".*", "_": "."}
    return bool(
        re.fullmatch(
            "".join(wild.get(part) or re.escape(part[-1]) for part in parts), _folded(text), re.DOTALL
        )
    )


def _has(value: Any, wanted: Any) -> bool:
    elements = value if isinstance(value, list) else [] if isinstance(value, dict) else [value]
    return any(
        _kind(each) == _kind(wanted) and _normal(each) == _normal(wanted)
        for each in elements
        if each is not None
    )


Test = Callable[[dict[str, Any]], bool | None]


@st.composite
def _conditions(draw: st.DrawFn) -> tuple[str, Test]:
    kind = draw(st.sampled_from(["number", "text", "meta", "in", "has", "null", "contains", "like", "glob"]))
    if kind in ("number", "text", "meta"):
        return _comparison(draw, kind)
    meta = [f"meta.{each}" for each in NAMES]
    name = draw(st.sampled_from(meta if kind == "has" else ["caption", *meta]))

    def of(test: Callable[[Any], bool]) -> Test:
        return lambda item: None if item[name] is None else test(item[name])

    if kind == "null":
        return f"{name} is  null", lambda item: item[name] is None
    if kind == "in":
        values = TEXTS if name == "caption" else [*TEXTS, *NUMBERS, True, False]
        chosen = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4))
        written = ",".join(map(_literal, chosen))
        return f"{name} in({written})", of(lambda value: any(_ordered("=", value, each) for each in chosen))
    if kind == "has":
        wanted = draw(st.sampled_from([*TEXTS, *NUMBERS, True, False]))
        return f"{name} HAS {_literal(wanted)}", of(lambda value: _has(value, wanted))
    if kind == "contains":
        text = draw(st.sampled_from(TEXTS))
        found = of(lambda value: _folded(text) in _folded(_text(value)))
        return f"{name} contains {_literal(text)}", found
    if kind == "like":
        pattern = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=5)))
        return f"{name} LIKE {_literal(pattern)}", of(lambda value: _like(_text(value), pattern))
    pattern = draw(
        st.sampled_from(
            [
                "a*",
                "*b",
                "?",
                "[a-b]*",
                "Ω*",
                "*[b-]a",
                "*[[]*",
                "*s?r*[a-zß]e",
                "*[1.]*",
                "k?",
                "e\u0301*",
                "*\u00e1",
            ]
        )
    )

    def matches(value: Any) -> bool:
        return fnmatch.fnmatchcase(_normal(_text(value)), _normal(pattern))

    return f"{name} glob {_literal(pattern)}", of(matches)


def _comparison(draw: st.DrawFn, kind: str) -> tuple[str, Test]:
    name = {"number": "width", "text": "caption"}.get(kind) or f"meta.{draw(st.sampled_from(NAMES))}"
    sign = draw(st.sampled_from(["=", "!=", "<", "<=", ">", ">="]))
    truth = [True, False] if sign in ("=", "!=") else []
    values = NUMBERS if kind == "number" else TEXTS if kind == "text" else [*NUMBERS, *TEXTS, *truth]
    value = draw(st.sampled_from(values))
    return f"{name} {sign} {_literal(value)}", lambda item: _ordered(sign, item[name], value)


def _both(one: bool | None, other: bool | None) -> bool | None:
    return False if one is False or other is False else None if one is None or other is None else True


def _not(one: bool | None) -> bool | None:
    return None if one is None else not one


def _combined(parts: st.SearchStrategy[tuple[str, Test]]) -> st.SearchStrategy[tuple[str, Test]]:
    return st.one_of(
        parts.map(lambda part: (f"NOT ({part[0]})", lambda item: _not(part[1](item)))),
        st.tuples(parts, parts).map(
            lambda two: (
                f"({two[0][0]}) AND ({two[1][0]})",
                lambda item: _both(two[0][1](item), two[1][1](item)),
            )
        ),
        st.tuples(parts, parts).map(
            lambda two: (
                f"({two[0][0]}) OR ({two[1][0]})",
                lambda item: _not(_both(_not(two[0][1](item)), _not(two[1][1](item)))),
            )
        ),
    )


_ANY = st.one_of(st.none(), st.sampled_from(VALUES))
_ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "width": st.sampled_from([0, 1, 2, 3]),
            "caption": st.one_of(st.none(), st.sampled_from(TEXTS)),
            "meta.a": _ANY,
            "meta.b": _ANY,
        }
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=300)
@given(filter=st.recursive(_conditions(), _combined, max_leaves=6), items=_ITEMS)
def test_where_mask_equals_an_evaluation_in_python(filter, items):
    text, test = filter
    db = sqlite3.connect(":memory:")
    db.executescript(SCHEMA)
    for number, item in enumerate(items):
        metadata = json.dumps({"a": item["meta.a"], "b": item["meta.b"]}, ensure_ascii=False)
        db.execute(
            "INSERT INTO items (id, added, source, key, size, mtime_ns, hash, width, height, caption, metadata, "
            "checksum) VALUES (?, 1, 0, ?, 1, 1, x'00', ?, 1, ?, ?, 0)",
            (number, number, item["width"], item["caption"], metadata),
        )
    guard(db)
    mask = compile_where(text).mask(db, rows=len(items), commit=1)
    db.close()
    assert mask.tolist() == [test(item) is True for item in items]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", (0, 0), "the filter is empty"),
        ("widht > 3", (0, 5), "no field 'widht'; did you mean 'width'? Fields: key, path, time, size"),
        ("author = 'x'", (0, 6), "for metadata write meta.author"),
        ("width > 'wide'", (8, 14), "width is compared with a number, got text"),
        ("caption = 3", (10, 11), "caption is compared with text, got a number"),
        ("caption = dog", (10, 13), "no field 'dog'"),
        ("caption LIKE dog", (13, 16), "expected text in single quotes after LIKE, got 'dog'; write 'dog'"),
        ('caption LIKE "狗%"', (13, 17), "after LIKE, got a name; write '狗%'"),
        ("width ＞ 100", (6, 7), "expected '>', got '＞', which is a look-alike character"),
        ("width IN (1，2)", (11, 12), "expected ',', got '，'"),
        ("width > 3 AND", (13, 13), "expected a field, got the end"),
        ("width 3", (6, 7), "expected a comparison: ="),
        ("width BETWEN 3", (6, 12), "did you mean 'between'?"),
        ("width > 3 height", (10, 16), "expected AND, OR or the end"),
        ("(width > 3", (10, 10), "expected ) to close the parenthesis"),
        ("width > 3)", (9, 10), "expected AND, OR or the end"),
        ("width > 3 && height > 3", (10, 11), "expected AND, OR or NOT in words, got &"),
        ("key = 'abc", (6, 10), "the quote ' is never closed"),
        ("key = “abc”", (6, 7), "expected a straight quote ', got “"),
        ("width > 3; DROP TABLE items", (9, 10), "';' has no meaning in a filter"),
        ("width > 3 -- more", (10, 11), "'-' has no meaning"),
        ("time > 'yesterday'", (7, 18), "time is compared with a time in quotes such as '2024'"),
        ("time > '2024-13'", (7, 16), "time is compared with a time"),
        ("time > '2024-02-30'", (7, 19), "time is compared with a time"),
        ("time > 2024", (7, 11), "time is compared with a time in quotes"),
        ("time LIKE '2024%'", (5, 9), "LIKE compares text, but time is a time"),
        ("width > 3MB", (8, 11), "no unit 'mb' for width"),
        ("size > 3parsec", (7, 14), "no unit 'parsec' for size"),
        ("caption = NULL", (10, 14), "NULL cannot be compared: write IS NULL"),
        ("meta = 'x'", (5, 6), "expected a dot and a name after meta"),
        ("meta.tags[x] = 1", (10, 11), "expected a list index"),
        ('meta."a""b" = 1', (0, 11), "a metadata name without quotes"),
        ("meta.a > TRUE", (0, 13), "TRUE and FALSE have no order"),
        ("width > caption", (0, 15), "width is a number and caption is text"),
        ("caption HAS 'x'", (8, 11), "HAS tests lists in the metadata"),
        ("key LIKE 'x\\'", (9, 13), "ends in a backslash that escapes nothing"),
        ("key GLOB 'a[b-c'", (9, 16), "the [ at character 2 of the pattern is never closed by ]"),
        ("width > 1e999", (8, 13), "a number of at most 1e308"),
        ("width IN ()", (10, 11), "width is compared with a number, got ')'"),
        ("width = 3 = 3", (10, 11), "expected AND, OR or the end"),
        ("'a' AND width > 3", (0, 3), "expected a field here"),
        ("NOT NULL", (4, 8), "expected a field, got 'NULL'"),
    ],
)  # fmt: skip
def test_where_error_points_at_the_position(text, place, message):
    with pytest.raises(WhereError) as caught:
        compile_where(text)
    assert message in str(caught.value)
    assert (caught.value.start, caught.value.end) == place
    assert f"at character {place[0] + 1}:" in str(caught.value)
    assert ">>" + text[place[0] : place[1]] + "<<" in str(caught.value)
    below = caught.value.pointer().split("\n")[1]
    assert (below.index("^"), len(below)) == (place[0], max(place[1], place[0] + 1))


def test_where_error_shows_an_excerpt_of_a_long_filter():
    text = "width > 1 AND " * 30 + "widht > 3" + " AND width > 1" * 30
    with pytest.raises(WhereError) as caught:
        compile_where(text)
    shown = str(caught.value).rpartition("Here: ")[2]
    assert ">>widht<<" in shown
    assert shown.startswith("...")
    assert shown.endswith("...")
    assert len(shown) < 80
