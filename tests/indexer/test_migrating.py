"""Indexes of format version 2, made here by hand as the release before wrote them."""

from __future__ import annotations

import hashlib
import json
import sqlite3

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    IndexDamagedError,
    IndexVersionError,
    build_index,
    compact_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.lifecycle.remove import Selection

from .material import content, encoded

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, path TEXT, offset INTEGER, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, sidecars INTEGER, hash BLOB NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    caption TEXT, metadata TEXT, tombstone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE errors (key TEXT PRIMARY KEY, stage TEXT NOT NULL, reason TEXT NOT NULL, size INTEGER, mtime_ns INTEGER)
    WITHOUT ROWID;
"""


def downgrade(index) -> None:
    """Write an index that was just built as format version 2 would have it."""
    with open_index(index) as opened:
        rows = [row for rows in opened.items.each() for row in rows]
        errors = opened.errors()
        manifest = json.loads((index / "manifest.json").read_text())
    (index / "items-00001.db").unlink()
    db = sqlite3.connect(index / "items-00001.db")
    with db:
        db.executescript(SCHEMA)
        db.execute("INSERT INTO meta VALUES ('index_id', ?)", (manifest["index_id"],))
        for row in rows:
            offset = json.loads(row.locator)["offset"] if row.locator else None
            values = (row.id, row.key, row.path, offset, *row[5:], 0)
            db.execute(f"INSERT INTO items VALUES ({', '.join('?' * 13)})", values)
        db.executemany("INSERT INTO errors VALUES (?, ?, ?, ?, ?)", [error[1:] for error in errors])
    db.close()
    kept = ("index_id", "generation", "created", "written_by", "encoder", "encoder_source", "items", "bad")
    old = {name: manifest[name] for name in (*kept, "items_file", "segments")}
    old |= {
        "format": "llm2clip-index",
        "format_version": 2,
        "corpus": manifest["sources"][0],
        "tombstones": 0,
    }
    old |= {"faiss_file": manifest["ann"]["file"], "faiss_kind": "flat-fp16-ip"}
    files = (index / name for name in ("items-00001.db", *manifest["files"]))
    old["files"] = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in files
    }
    old["checksum"] = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    (index / "manifest.json").write_text(json.dumps(old))


@pytest.fixture(params=["folder", "tar"])
def older(request, photos, shards, tmp_path):
    """A corpus, its index in format version 2, and what that index holds."""
    corpus = photos if request.param == "folder" else shards
    (photos / "bad.png").write_bytes(b"no image")
    build_index(corpus, tmp_path / "i", encoder=FakeEncoder())
    with open_index(tmp_path / "i") as index:
        expected = content(index)
    downgrade(tmp_path / "i")
    return corpus, tmp_path / "i", expected


def never() -> FakeEncoder:
    raise AssertionError("the encoder was loaded")


def check(index, expected) -> None:
    with open_index(index) as opened:
        assert content(opened) == expected
        assert opened.verify().problems == ()
        assert opened.read_image(0)


def test_a_reader_names_the_command_that_helps_and_it_does(older):
    _, index, expected = older
    with pytest.raises(IndexVersionError) as failure:
        open_index(index)
    assert str(failure.value).endswith(
        f"without reading an image again, with  llm2clip-index compact --index {index}"
    )
    compact_index(index)
    check(index, expected)


def test_every_change_brings_it_up_to_date_first(older):
    _, index, expected = older
    assert not update_index(index, encoder=never).changed_anything
    check(index, expected)


def test_a_build_goes_on_with_it(older):
    corpus, index, expected = older
    report = build_index(corpus, index, encoder=FakeEncoder())
    assert (report.embedded, report.up_to_date) == (0, True)
    check(index, expected)


def test_a_removal_goes_on_with_it(older):
    _, index, expected = older
    key = max(key for _, key in expected)
    assert remove_images(index, Selection(keys=[key])).removed == 1
    check(index, {each: row for each, row in expected.items() if each[1] != key})


def test_one_that_is_damaged_is_not_taken_over(older):
    _, index, _ = older
    before = (index / "manifest.json").read_bytes()
    (index / "items-00001.db").unlink()
    with pytest.raises(
        IndexDamagedError, match=r"items-00001\.db is missing\. Build the index anew with --overwrite"
    ):
        update_index(index, encoder=never)
    assert (index / "manifest.json").read_bytes() == before
    (index / "manifest.json").write_bytes(before.replace(b'"bad"', b'"bed"'))
    with pytest.raises(IndexDamagedError, match="checksum does not fit"):
        update_index(index, encoder=never)


def test_bad_images_are_taken_over(photos, tmp_path):
    (photos / "bad.png").write_bytes(b"no image")
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    downgrade(tmp_path / "i")
    (photos / "new.png").write_bytes(encoded((1, 2, 3)))
    report = update_index(tmp_path / "i", encoder=FakeEncoder())
    assert (report.new, report.bad, report.unchanged) == (1, 0, 31)
    with open_index(tmp_path / "i") as index:
        assert [error.key for error in index.errors()] == ["bad.png"]
        assert index.manifest.bad == 1
