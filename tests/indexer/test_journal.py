"""Commits that were cut off by a signal: what is read beside their journal, and that SQLite undoes them alike."""

import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from llm2clip.indexer import IndexerError, Selection, open_index, remove_images
from llm2clip.indexer.lifecycle.repair import repair_index
from llm2clip.indexer.storage import items_file as items
from llm2clip.indexer.storage.journal import rolled_back

from .hostile import ITEMS, QUERY
from .material import whole

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes with POSIX signals")

HALF_A_COMMIT = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 5")
db.execute("PRAGMA cache_spill = 1")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE items SET caption = hex(randomblob(4000))")
db.execute("DELETE FROM meta")
os.kill(os.getpid(), signal.SIGKILL)
"""


def cut_off(path: Path) -> None:
    """Let a writer of an items file be killed in the middle of its commit, which leaves a journal."""
    subprocess.run([sys.executable, "-c", HALF_A_COMMIT, str(path)], check=False)


def test_rolled_back_agrees_with_sqlite(index):
    """A commit that was cut off, undone by us and by SQLite: the same bytes."""
    path, journal = index / ITEMS, index / f"{ITEMS}-journal"
    before = path.read_bytes()
    cut_off(path)
    left = path.read_bytes()
    assert left != before
    assert rolled_back(left, journal.read_bytes()) == before
    with sqlite3.connect(path) as db:
        db.execute("SELECT count(*) FROM meta").fetchall()
    db.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [0, 7, 27, 600, -1])
def test_rolled_back_stops_where_a_journal_was_not_flushed(index, cut):
    path, journal = index / ITEMS, index / f"{ITEMS}-journal"
    cut_off(path)
    content, part = path.read_bytes(), journal.read_bytes()[:cut]
    found = rolled_back(content, part)
    journal.write_bytes(part)
    with sqlite3.connect(path) as db, suppress(sqlite3.DatabaseError):
        db.execute("PRAGMA page_count").fetchall()
    db.close()
    assert path.read_bytes() == found


@pytest.mark.parametrize(("opened_before", "filtered_before"), [(False, False), (True, False), (True, True)])
def test_reader_sees_the_index_as_it_was_before_a_commit_that_was_cut_off(
    index, photos, opened_before, filtered_before
):
    """A journal beside the items is the mark of it. A reader writes nothing; the next writer undoes the commit."""
    before = (index / "items-00001.db").read_bytes()
    earlier = open_index(index)
    if filtered_before:
        assert len(earlier.search(QUERY, k=100, where="width >= 11")[0]) == 30
    cut_off(index / "items-00001.db")
    left = {file.name: file.read_bytes() for file in index.iterdir()}
    assert "items-00001.db-journal" in left
    assert left["items-00001.db"] != before
    with earlier, open_index(index) if not opened_before else earlier as opened:
        assert len(opened.search(QUERY, k=100, where="width >= 12")[0]) == 30
        assert opened.verify().problems == ()
    assert {file.name: file.read_bytes() for file in index.iterdir()} == left
    remove_images(index, Selection(keys=["000.png"]))
    assert not (index / "items-00001.db-journal").exists()
    assert len(whole(index)) == 29


def test_reader_says_what_to_do_about_a_large_file_that_was_cut_off(index, monkeypatch):
    path = index / "items-00001.db"
    before = path.read_bytes()
    cut_off(path)
    monkeypatch.setattr(items, "_MAX_IN_MEMORY", len(before) - 1)
    with pytest.raises(IndexerError, match=r"items-00001\.db was left half written .*: run  llm2clip-index"):
        open_index(index)
    assert repair_index(index).repaired == ()
    assert path.read_bytes() == before
    assert len(whole(index)) == 30
