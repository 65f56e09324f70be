"""Random filters over random images, against a second reading of the language in plain Python."""

import fnmatch
import json
import re
import sqlite3
import unicodedata
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llm2clip.indexer.filters.compile import compile_where
from llm2clip.indexer.filters.sandbox import guard
from llm2clip.indexer.storage.items_schema import SCHEMA

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
