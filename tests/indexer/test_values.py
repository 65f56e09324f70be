"""Odd values of metadata and file times: one of them costs nothing but itself."""

import json
import os

import pytest

from llm2clip.indexer import build_index, open_corpus, open_index, update_index
from llm2clip.indexer.lifecycle.export import export_index
from llm2clip.indexer.records.values import parsed, storable

from .material import colour_of, encoded, put


def strict(text):
    """JSON as its standard defines it."""

    def no(constant):
        raise AssertionError(f"not JSON: {constant}")

    return json.loads(text, parse_constant=no)


def test_storable_replaces_what_no_index_can_hold():
    given = {
        "a": float("nan"),
        "b": [1, {"c": float("-inf"), "d": 2.5}],
        "e": 2**63,
        "f": -(2**63),
        "g": True,
    }
    metadata, note = storable(given)
    assert metadata == {
        "a": None,
        "b": [1, {"c": None, "d": 2.5}],
        "e": "9223372036854775808",
        "f": -(2**63),
        "g": True,
    }
    assert note == "no finite number, so null in the metadata: a, b"
    assert storable({"a": 1}) == ({"a": 1}, None)
    deep = []
    for _ in range(300):
        deep = [deep]
    assert storable({"a": deep}) == (None, "metadata left out: nested more than 200 deep")


def test_parsed_reads_what_earlier_releases_stored():
    assert parsed('{"a": NaN, "b": [Infinity], "c": 1}') == {"a": None, "b": [None], "c": 1}
    with pytest.raises(ValueError, match="expected an object, got list"):
        parsed("[1]")


@pytest.fixture
def odd(tmp_path):
    """A folder of images, all but one of which have a value that no index can hold."""
    photos = put(
        tmp_path / "photos", {f"{name}.png": encoded(colour_of(n)) for n, name in enumerate("abcde")}
    )
    for name, score in (
        ("a", "NaN"),
        ("b", "1e400"),
        ("c", '[1, {"x": -Infinity}]'),
        ("d", "123456789012345678901"),
    ):
        (photos / f"{name}.json").write_text(f'{{"caption": "of {name}", "year": 2020, "score": {score}}}')
    (photos / "e.json").write_text('{"caption": NaN, "year": 2020}')
    os.utime(photos / "e.png", ns=(0, 2**63 + 5 * 10**9))
    return photos


def test_an_index_keeps_images_with_odd_values(odd, encoder, tmp_path):
    build_index(odd, tmp_path / "index", encoder=encoder)
    with open_index(tmp_path / "index") as index:
        assert index.allowed("meta.year = 2020").sum() == 5
        assert index.allowed("meta.year IS NULL").sum() == 0
        assert index.allowed("meta.score = 123456789012345678901").sum() == 1
        assert index.allowed("time IS NULL").sum() == 1
        rows = {row.key: row for rows in index.items.each() for row in rows}
        assert rows["a.png"].caption == "of a"
        assert rows["e.png"].caption is None
        assert strict(rows["c.png"].metadata) == {"year": 2020, "score": [1, {"x": None}]}
        reasons = {row.key: row.reason for row in index.items.errors(every=True)}
    null = "no finite number, so null in the metadata: "
    time = "its file time lies before 1677 or after 2262, so it counts as unknown"
    assert reasons == {
        **dict.fromkeys(["a.png", "b.png", "c.png"], f"{null}score"),
        "e.png": f"{time}; {null}caption",
    }
    again = update_index(tmp_path / "index", encoder=encoder)
    assert (again.changed_anything, again.unchanged) == (False, 5)
    export_index(tmp_path / "index", tmp_path / "out")
    items = [strict(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert {item["key"]: item["metadata"].get("year") for item in items} == dict.fromkeys(rows, 2020)


def test_an_image_whose_time_jumps_stays(odd, encoder, tmp_path):
    build_index(odd, tmp_path / "index", encoder=encoder)
    for name in "ab":
        os.utime(odd / f"{name}.png", ns=(0, 2**63 + 10**18))
    update_index(tmp_path / "index", encoder=encoder)
    with open_index(tmp_path / "index") as index:
        assert len(index) == 5
        assert index.allowed("time IS NULL").sum() == 3


@pytest.mark.parametrize(
    ("unit", "values", "texts"),
    [
        ("ns", [0, 1_700_000_000_123_456_789], ["1970-01-01T00:00:00", "2023-11-14T22:13:20.123456789"]),
        ("s", [0, -62_167_219_200], ["1970-01-01T00:00:00", "0000-01-01T00:00:00"]),
        ("s", [0, 10**12], ["1970-01-01T00:00:00", None]),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_keeps_rows_with_odd_times(unit, values, texts, kind, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    columns = {"image": [encoded(colour_of(n)) for n in range(2)], "text": ["one", "two"]}
    table = pa.table({**columns, "when": pa.array(values, pa.timestamp(unit))})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "t.parquet")
    else:
        with pa.ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
            writer.write_table(table)
    found = list(open_corpus(tmp_path / f"t.{kind}").records())
    assert [record.caption for record in found] == ["one", "two"]
    assert [record.note for record in found] == [None, None]
    whens = [(record.metadata or {}).get("when") for record in found]
    assert [when and when.removesuffix(".000") for when in whens] == texts
