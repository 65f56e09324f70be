"""Filters reach nothing but the items of their index, and have limits."""

import sqlite3

import pytest

from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.filters.compile import WhereError, compile_where
from llm2clip.indexer.filters.fields import NFC
from llm2clip.indexer.filters.parser import MAX_CONDITIONS, MAX_DEPTH, MAX_PATTERN, MAX_VALUES
from llm2clip.indexer.filters.sandbox import guard
from llm2clip.indexer.filters.tokenizer import MAX_LENGTH

from .test_where import IMAGES, guarded, table


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT value FROM meta",
        "SELECT sql FROM sqlite_master",
        "SELECT locator FROM items",
        "SELECT * FROM items",
        "SELECT id FROM items UNION SELECT value FROM meta",
        "SELECT id FROM items WHERE key IN (SELECT value FROM meta)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "ATTACH DATABASE '/tmp/elsewhere.db' AS other",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "DELETE FROM items",
        "UPDATE items SET caption = 'x'",
        "INSERT INTO items (id) VALUES (99)",
        "DROP TABLE items",
        "CREATE TABLE t (x)",
        "CREATE TEMP TABLE t (x)",
        "BEGIN",
        "SELECT load_extension('x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT randomblob(1000000000)",
        "SELECT zeroblob(1000000000)",
        "SELECT printf('%1000000000d', 1)",
        "SELECT sqlite_version()",
        "SELECT name FROM pragma_table_info('items')",
        "VACUUM INTO '/tmp/elsewhere.db'",
    ],
)
def test_guard_allows_nothing_but_filters(statement, tmp_path):
    items = table(tmp_path / "items.db", IMAGES)
    with pytest.raises(sqlite3.DatabaseError, match=r"not authorized|prohibited|denied|no such function"):
        items.execute(statement).fetchall()
    assert items.execute("SELECT count(*) FROM items").fetchone() == (len(IMAGES),)
    items.close()


HOSTILE = [
    "' OR 1=1 --",
    "'; DROP TABLE items; --",
    "x' UNION SELECT value FROM meta --",
    "') OR ('1'='1",
    "\\",
    "%",
    "?1",
    ":a",
    "\x00",
    '"; ATTACH DATABASE "x" AS y',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_compile_where_binds_all_text(text, tmp_path):
    items = table(tmp_path / "items.db", [*IMAGES, {**IMAGES[0], "key": text, "caption": text}])
    quoted = "'" + text.replace("'", "''") + "'"
    for filter in (f"caption = {quoted}", f"key IN ({quoted}, 'nothing')"):
        where = compile_where(filter)
        assert where.mask(items, rows=6, commit=1).tolist() == [False] * 5 + [True]
        assert text not in where.condition
        assert set(where.condition.replace(NFC, "")) <= set(
            "abcdefghijklmnopqrstuvwxyz_ ABCDEFGHIJKLMNOPQRSTUVWXYZ(),=?"
        )
    items.close()


@pytest.mark.parametrize("name", ["a') OR 1=1 --", "$[0]", "a.b", "*", "#-1", "']; DROP TABLE items"])
def test_compile_where_binds_metadata_names(name, tmp_path):
    items = table(tmp_path / "items.db", [*IMAGES, {**IMAGES[0], "key": "x", "metadata": {name: "here"}}])
    where = compile_where(f"meta.\"{name}\" = 'here'")
    assert where.mask(items, rows=6, commit=1).tolist() == [False] * 5 + [True]
    assert name not in where.condition
    items.close()


def test_compile_where_has_limits():
    compile_where(" OR ".join(["width = 1"] * MAX_CONDITIONS))
    compile_where("(" * MAX_DEPTH + "width = 1" + ")" * MAX_DEPTH)
    compile_where(f"width IN ({','.join(['1'] * MAX_VALUES)})")
    for text, message in (
        (" OR ".join(["width = 1"] * (MAX_CONDITIONS + 1)), "more than 256 comparisons"),
        ("(" * (MAX_DEPTH + 1), "more than 40 nested parentheses"),
        ("NOT " * 5000, "more than 40 nested parentheses"),
        (f"width IN ({','.join(['1'] * (MAX_VALUES + 1))})", "more than 4,096 values"),
        ("x" * (MAX_LENGTH + 1), "at most 20,000 characters"),
        (f"key LIKE '{'x' * (MAX_PATTERN + 1)}'", "LIKE takes at most 1,000 characters, got 1,001"),
        (f"key GLOB '{'x' * (MAX_PATTERN + 1)}'", "GLOB takes at most 1,000 characters, got 1,001"),
        (f"key CONTAINS '{'x' * (MAX_PATTERN + 1)}'", "CONTAINS takes at most 1,000 characters, got 1,001"),
    ):
        with pytest.raises(WhereError, match=message):
            compile_where(text)


def test_where_mask_of_the_largest_filter(tmp_path):
    items = table(tmp_path / "items.db", IMAGES)
    for word in ("OR", "AND"):
        text = f" {word} ".join(["meta.a.b.c < 1"] * MAX_CONDITIONS)
        assert not compile_where(text).mask(items, rows=5, commit=1).any()
    many = compile_where(f"width IN ({','.join(map(str, range(1, MAX_VALUES)))}, 4000)")
    assert many.mask(items, rows=5, commit=1).all()
    items.close()


def test_where_mask_has_a_time_limit(tmp_path):
    items = table(tmp_path / "items.db", [{**IMAGES[0], "key": str(n)} for n in range(3000)])
    where = compile_where(" OR ".join(["caption CONTAINS 'x'"] * 50))
    with pytest.raises(WhereError, match="the filter was stopped after 0 seconds: simplify it"):
        where.mask(items, rows=3000, commit=1, seconds=0)
    assert not where.mask(items, rows=3000, commit=1).any()
    items.close()


@pytest.mark.parametrize("letter", ["a", "я"])
@pytest.mark.parametrize(
    "filter",
    [
        "caption LIKE '" + "%{0}" * 50 + "%b'",
        "caption LIKE '%" + "_" * 480 + "b%'",
        "caption CONTAINS '" + "{0}" * 900 + "b'",
        "caption GLOB '*" + "?" * 480 + "b*'",
        "caption GLOB '" + "*[{0}-{0}]" * 150 + "*c'",
        "caption GLOB '*" + "[{0}-{0}]" * 150 + "c*'",
    ],
)
def test_where_mask_of_hostile_patterns_is_linear(letter, filter, tmp_path):
    # A matcher that tries every way to place the pieces would need 10,000 ** 50 steps.
    items = table(tmp_path / "items.db", [{**IMAGES[0], "caption": letter * 10_000}])
    assert not compile_where(filter.format(letter)).mask(items, rows=1, commit=1).any()
    items.close()


@pytest.mark.parametrize("word", ["LIKE", "GLOB"])
def test_where_mask_stops_within_a_long_text(word, tmp_path):
    items = table(
        tmp_path / "items.db", [{**IMAGES[0], "key": str(n), "caption": "я" * 5000} for n in range(3)]
    )
    with pytest.raises(WhereError, match="stopped after 0 seconds"):
        compile_where(f"caption {word} '*?b'").mask(items, rows=3, commit=1, seconds=0)
    assert not compile_where(f"caption {word} '*?b'").mask(items, rows=3, commit=1).any()
    items.close()


def test_where_mask_reports_a_damaged_items_file(tmp_path):
    path = tmp_path / "items.db"
    table(path, [{**IMAGES[0], "key": str(n)} for n in range(1000)]).close()
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    path.write_bytes(data)
    items = guarded(path)
    with pytest.raises(IndexDamagedError, match="the items of the index cannot be read"):
        compile_where("caption CONTAINS 'x'").mask(items, rows=1000, commit=1)
    items.close()


def test_guard_ignores_hostile_schemas(tmp_path):
    with sqlite3.connect(tmp_path / "items.db") as db:
        columns = "1 AS id, 'k' AS key, 1 AS added, 9 AS removed, 1 AS width"
        db.execute("CREATE TABLE secret (x)")
        db.execute(f"CREATE VIEW items AS SELECT {columns}, x AS caption FROM secret")
    db.close()
    items = sqlite3.connect(tmp_path / "items.db")  # which an index refuses to open
    guard(items)
    with pytest.raises(IndexDamagedError, match=r"prohibited|not authorized"):
        compile_where("caption = 'x'").mask(items, rows=5, commit=1)
    items.close()
