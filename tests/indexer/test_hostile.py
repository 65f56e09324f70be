"""An index folder from a stranger: nothing is written, deleted or read outside it, and errors are one line."""

import json
import os
import shutil
import sqlite3
import tracemalloc
from pathlib import Path

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import IndexDamagedError, IndexerError, build_index, open_index
from llm2clip.indexer.storage import items_file

from .hostile import (
    ANN,
    ITEMS,
    QUERY,
    VECTORS,
    alter_items,
    alter_manifest,
    journal_that_names,
    operations,
    tree,
)

OPERATIONS = tuple(operations(Path(), Path()))
pytestmark = pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A small index, never changed, and its images."""
    from .material import numbered, put

    folder = tmp_path_factory.mktemp("made")
    photos = put(folder / "photos", numbered(range(10)))
    build_index(photos, folder / "i", encoder=FakeEncoder())
    return folder / "i", photos


@pytest.fixture
def index(made, tmp_path) -> Path:
    shutil.copytree(made[0], tmp_path / "i")
    return tmp_path / "i"


@pytest.fixture
def victim(tmp_path) -> Path:
    """A file of the user outside the index."""
    path = tmp_path / "victim.txt"
    path.write_text("precious\n")
    return path


def attempt(index: Path, photos: Path, name: str) -> str:
    """Run an operation; what it says if it refuses, which has to be one line."""
    try:
        operations(index, photos)[name]()
    except (ValueError, OSError) as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert len(text) < 2000
        return text
    return ""


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_deletes_a_file_that_a_journal_names(index, made, victim, name):
    (index / f"{ITEMS}-journal").write_bytes(journal_that_names(index, victim))
    said = attempt(index, made[1], name)
    assert victim.read_text() == "precious\n"
    if name in ("search", "verify", "remove", "compact", "repair", "update"):
        assert "names another file" in said


def test_sqlite_would_delete_what_that_journal_names(index, victim):
    """The journal of the test above is one that SQLite believes."""
    (index / f"{ITEMS}-journal").write_bytes(journal_that_names(index, victim))
    with sqlite3.connect(index / ITEMS) as db:
        db.execute("SELECT count(*) FROM meta").fetchall()
    db.close()
    assert not victim.exists()


@pytest.mark.parametrize(
    "file", [f"{ITEMS}-journal", f"{ITEMS}-wal", f"{ITEMS}-shm", "manifest.json.tmp", "lock", "writer"]
)
@pytest.mark.parametrize("missing", [False, True])
def test_no_operation_follows_a_link(index, made, victim, file, missing):
    if missing:
        victim.unlink()
    for name in ("search", "verify", "update", "compact", "repair", "remove"):
        (index / file).unlink(missing_ok=True)
        (index / file).symlink_to(victim)
        attempt(index, made[1], name)
        assert victim.exists() != missing
        assert missing or victim.read_text() == "precious\n"


@pytest.mark.parametrize("file", [ITEMS, VECTORS, ANN, "manifest.json"])
def test_no_operation_takes_a_file_from_elsewhere(index, made, tmp_path, file):
    """The same bytes behind a link: read by nothing, and changed by nothing."""
    (tmp_path / "outside").mkdir()
    outside = tmp_path / "outside" / file
    shutil.move(index / file, outside)
    (index / file).symlink_to(outside)
    before = outside.read_bytes()
    for name in OPERATIONS:
        attempt(index, made[1], name)
        assert outside.read_bytes() == before
    assert os.listdir(tmp_path / "outside") == [file]


@pytest.mark.parametrize("file", [ITEMS, VECTORS, "manifest.json", "lock", f"{ITEMS}-journal"])
def test_no_operation_waits_for_a_pipe(index, made, file):
    (index / file).unlink(missing_ok=True)
    os.mkfifo(index / file)
    for name in ("search", "remove", "repair"):
        attempt(index, made[1], name)


ELSEWHERE = [
    "../victim.txt",
    "ABSOLUTE",
    "sub/vectors-00001-00000.npy",
    "..",
    "",
    "vectors-00001-00000.npy\0",
    "lock",
]


@pytest.mark.parametrize("entry", ["items", "segment", "ann"])
@pytest.mark.parametrize("wanted", ELSEWHERE)
def test_manifest_names_files_of_an_index_only(index, made, victim, entry, wanted):
    wanted = str(victim) if wanted == "ABSOLUTE" else wanted

    def change(content):
        if entry == "items":
            content["items_file"] = wanted
            return
        place = content["segments"][0] if entry == "segment" else content["ann"]
        content["files"][wanted] = content["files"].pop(place["file"])
        place["file"] = wanted

    alter_manifest(index, change)
    with pytest.raises(IndexDamagedError, match=r"has an invalid entry: .*file"):
        open_index(index)
    before = tree(index)
    for name in OPERATIONS:
        attempt(index, made[1], name)
        assert victim.read_text() == "precious\n"
    assert {
        path: content for path, content in tree(index).items() if path in before and "lock" not in path
    } == {path: content for path, content in before.items() if "lock" not in path}


ODD = {
    "dim": lambda m: m["encoder"].update(dim="x"),
    "dim 0": lambda m: m["encoder"].update(dim=0),
    "dim true": lambda m: m["encoder"].update(dim=True),
    "dim large": lambda m: m["encoder"].update(dim=10**18),
    "encoder": lambda m: m.update(encoder=[]),
    "encoder entry": lambda m: m["encoder"].update(name=["x"]),
    "encoder source": lambda m: m.update(encoder_source=7),
    "rows": lambda m: m.update(rows=-5),
    "rows large": lambda m: m.update(rows=10**15, items=10**15),
    "items": lambda m: m.update(items=11),
    "items text": lambda m: m.update(items="10"),
    "bad": lambda m: m.update(bad=1.5),
    "segment rows": lambda m: m["segments"][0].update(rows=10**12),
    "segment rows negative": lambda m: m["segments"][0].update(rows=-1),
    "segment twice": lambda m: m.update(segments=m["segments"] * 2),
    "segment entry": lambda m: m["segments"][0].update(more=1),
    "segments": lambda m: m.update(segments=[]),
    "segments text": lambda m: m.update(segments="abc"),
    "sources": lambda m: m.update(sources=[]),
    "source": lambda m: m.update(sources=["x"]),
    "source kind": lambda m: m["sources"][0].pop("kind"),
    "source root": lambda m: m["sources"][0].update(root=5),
    "generation": lambda m: m.update(generation="z"),
    "generation large": lambda m: m.update(generation=10**30),
    "generation 0": lambda m: m.update(generation=0),
    "items checksum": lambda m: m.update(items_checksum="zz"),
    "items bytes": lambda m: m.update(items_bytes="1"),
    "items file": lambda m: m.update(items_file=[1]),
    "file bytes": lambda m: m["files"][VECTORS].update(bytes="1"),
    "file more": lambda m: m["files"].update(other={"bytes": 1, "sha256": ""}),
    "ann rows": lambda m: m["ann"].update(rows=10**9),
    "ann plan": lambda m: m["ann"].update(plan={"kind": ["a"]}),
    "ann": lambda m: m.update(ann=[]),
    "decoding": lambda m: m.update(decoding={"margin": "x"}),
    "decoding deep": lambda m: m.update(decoding=json.loads("[" * 400 + "]" * 400)),
    "number": lambda m: m.update(rows=int("9" * 400)),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_manifest_entries_of_other_types_are_refused_in_a_line(index, made, change):
    alter_manifest(index, change)
    with pytest.raises(IndexDamagedError, match="has an invalid entry"):
        open_index(index)
    for name in ("search", "verify", "update", "build", "compact", "repair", "remove"):
        assert attempt(index, made[1], name)


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ({"kind": "hnsw-sq8"}, "missing or unknown entries"),
        ({"kind": "no such"}, "a type that this release does not know"),
    ],
)
def test_an_ann_plan_of_another_form_is_refused_in_a_line(index, made, plan, problem):
    alter_manifest(index, lambda content: content["ann"].update(plan=plan))
    assert problem in attempt(index, made[1], "search")
    for name in OPERATIONS:
        attempt(index, made[1], name)


def test_a_large_manifest_is_not_read(index):
    with open(index / "manifest.json", "w") as file:
        file.write('{"format":"llm2clip-index","a":[' + "{}," * 3_000_000 + "0]}")
    tracemalloc.start()
    try:
        with pytest.raises(IndexDamagedError, match=r"it has more than 4,194,304 bytes"):
            open_index(index)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "NaN", '{"a": 1e999999}', b"\xff\xfe", "", "7"]
)
def test_a_manifest_that_is_no_json_object_is_refused_in_a_line(index, made, text):
    (index / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in OPERATIONS:
        assert attempt(index, made[1], name)


SCHEMAS = {
    "view": "ALTER TABLE meta RENAME TO meta0; CREATE VIEW meta AS WITH RECURSIVE c(x) AS "
    "(SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT 'k' || x AS key, 'v' AS value FROM c",
    "trigger": "CREATE TRIGGER t AFTER UPDATE ON items BEGIN DELETE FROM errors; END",
    "virtual": "CREATE VIRTUAL TABLE extra USING fts5(a)",
    "table": "CREATE TABLE extra (a)",
    "index": "CREATE INDEX extra ON items (hex(caption))",
    "missing": "DROP TABLE items",
    "column": "ALTER TABLE items ADD COLUMN extra TEXT",
    "wal": "PRAGMA journal_mode = WAL",
}


@pytest.mark.parametrize("script", SCHEMAS.values(), ids=SCHEMAS)
def test_items_with_other_tables_are_refused(index, made, script):
    alter_items(index, script)
    before = (index / ITEMS).read_bytes()
    for name in OPERATIONS:
        if name != "build":  # which embeds everything again
            assert "is damaged" in attempt(index, made[1], name), name
    assert (index / ITEMS).read_bytes() == before
    assert build_index(made[1], index, encoder=FakeEncoder()).embedded == 10


CONTENTS = {
    "key blob": "UPDATE items SET key = x'ff00' WHERE id = 0",
    "key number": "UPDATE items SET key = 5 WHERE id = 1",
    "caption blob": "UPDATE items SET caption = x'ff'",
    "not utf-8": "UPDATE items SET caption = CAST(x'ff41' AS TEXT)",
    "key not utf-8": "UPDATE items SET key = CAST(x'ff41' AS TEXT) WHERE id = 4",
    "meta not utf-8": "UPDATE meta SET value = CAST(x'ff41' AS TEXT) WHERE key = 'sources'",
    "error not utf-8": "INSERT INTO errors VALUES (0, CAST(x'ff41' AS TEXT), 'read', 'x', 1, 1, 1, 9)",
    "metadata": "UPDATE items SET metadata = '{'",
    "metadata list": "UPDATE items SET metadata = '[1]'",
    "metadata deep": "UPDATE items SET metadata = '{\"a\":' || replace(hex(zeroblob(50000)), '0', '[') || '}'",
    "source 99": "UPDATE items SET source = 99",
    "source -1": "UPDATE items SET source = -1",
    "source text": "UPDATE items SET source = 'x'",
    "hash text": "UPDATE items SET hash = 'abc'",
    "width text": "UPDATE items SET width = 'w'",
    "time text": "UPDATE items SET mtime_ns = 'x'",
    "size real": "UPDATE items SET size = 1e300",
    "locator": "UPDATE items SET locator = '{\"path\": 5}'",
    "locator deep": "UPDATE items SET locator = replace(hex(zeroblob(50000)), '0', '[')",
    "id negative": "UPDATE items SET id = -3 WHERE id = 2",
    "id large": "UPDATE items SET id = 1 << 40 WHERE id = 2",
    "id text": "UPDATE items SET id = 'x' WHERE id = 2",
    "all gone": "UPDATE items SET removed = 1",
    "removed text": "UPDATE items SET removed = 'x' WHERE id = 3",
    "added text": "UPDATE items SET added = 'x' WHERE id = 3",
    "generation": "UPDATE meta SET value = 'x' WHERE key = 'generation'",
    "generation large": "UPDATE meta SET value = '1e999' WHERE key = 'generation'",
    "no meta": "DELETE FROM meta",
    "writing": "UPDATE meta SET value = 'zz' WHERE key = 'writing'",
    "sources": "UPDATE meta SET value = '{' WHERE key = 'sources'; UPDATE meta SET value = '99' WHERE key = 'writing'",
    "sources number": "UPDATE meta SET value = '7' WHERE key = 'sources'; "
    "UPDATE meta SET value = '99' WHERE key = 'writing'",
    "lifetimes": "UPDATE meta SET value = '1 zz' WHERE key = 'lifetimes'",
    "unfinished": "INSERT INTO unfinished VALUES ('x', 'k', 1, 1, x'00', 1, 1, '../../../../../etc/passwd', 0)",
    "unfinished row": "INSERT INTO unfinished VALUES ('x', 'k', 1, 1, x'00', 1, 1, 'vectors-00001-00000.npy', 'r')",
}


@pytest.mark.parametrize("script", CONTENTS.values(), ids=CONTENTS)
def test_odd_rows_end_in_a_line(index, made, tmp_path, script):
    alter_items(index, script)
    for name in ("search", "filter", "read", "verify", "export"):
        attempt(index, made[1], name)
    for name in ("update", "compact", "repair", "remove"):
        shutil.copytree(index, tmp_path / name / "i")
        attempt(tmp_path / name / "i", made[1], name)


def test_a_file_whose_pages_never_end_is_given_up(index, made, monkeypatch):
    """Inner pages that all lead to the same pages below: a scan of them takes longer than the world is old."""
    alter_items(index, "PRAGMA page_size = 512; VACUUM")
    forked(index / ITEMS)
    monkeypatch.setattr(items_file, "_LEAST_SECONDS", 0.2)
    with pytest.raises(IndexDamagedError, match="is damaged: interrupted"):
        items_file.query(index / ITEMS, "SELECT count(*) FROM meta WHERE value > ''")
    alter_manifest(index, lambda content: content.update(items_bytes=os.path.getsize(index / ITEMS)))
    for name in OPERATIONS:
        attempt(index, made[1], name)


def forked(path: Path) -> None:
    """Put under the root of ``meta`` levels of pages whose children are all the same page of the next level."""
    with sqlite3.connect(path) as db:
        [(root,)] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'meta'").fetchall()
    db.close()
    content = bytearray(path.read_bytes())
    leaf = content[(root - 1) * 512 : root * 512]
    assert leaf[0] == 10, "meta fits into a page"
    first, levels, children = len(content) // 512 + 1, 18, 30
    for level in range(levels):
        below = (first + level).to_bytes(4, "big")
        page = bytearray(512)
        cells = [
            below + bytes([5, 3, 15, 15, 107, 118]) for _ in range(children)
        ]  # a record of two texts of a letter
        start = 512
        for number, cell in enumerate(cells):
            start -= len(cell)
            page[start : start + len(cell)] = cell
            page[12 + 2 * number : 14 + 2 * number] = start.to_bytes(2, "big")
        page[:12] = bytes([2, 0, 0]) + children.to_bytes(2, "big") + start.to_bytes(2, "big") + b"\0" + below
        where = root if level == 0 else first + level - 1
        content[(where - 1) * 512 : where * 512] = page
    content += leaf
    content[28:32] = (len(content) // 512).to_bytes(4, "big")
    path.write_bytes(content)


def test_a_journal_of_anything_is_harmless(index, made):
    for content in (b"x" * 5000, b"\0" * 5000, bytes.fromhex("d9d505f920a163d7") + b"\xff" * 5000):
        (index / f"{ITEMS}-journal").write_bytes(content)
        for name in ("search", "verify"):
            attempt(index, made[1], name)
        assert (index / f"{ITEMS}-journal").read_bytes() == content
    with pytest.raises(IndexerError), open_index(index.parent / "none"):
        pass
    assert QUERY.shape == (1, 16)
