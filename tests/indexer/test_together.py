"""Readers and writers at the same time, and places where nothing can be written."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    IndexConflictError,
    IndexDamagedError,
    IndexerError,
    IndexWriteError,
    add_images,
    build_index,
    compact_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.lifecycle.remove import Selection
from llm2clip.indexer.lifecycle.repair import repair_index
from llm2clip.indexer.storage import items_file as items
from llm2clip.indexer.storage import lock as store
from llm2clip.indexer.storage import transaction

from .material import colour_of, encoded, numbered, put

QUERY = np.eye(1, 16, dtype=np.float32)
READER = """
import json, sys
import numpy as np
from llm2clip.indexer import open_index
query = np.eye(1, 16, dtype=np.float32)
kept = None
print("ready", flush=True)
for line in sys.stdin:
    with open_index(sys.argv[1]) as index:
        hits = index.search(query, k=1000)[0]
        some = index.search(query, k=1000, where="width >= 12")[0]
        known = [key for rows in index.items.each() for key in [row.key for row in rows]]
        print(json.dumps([index.manifest.generation, len(index), sorted(hit.key for hit in hits), sorted(known),
                          sorted(hit.key for hit in some), [hit.score for hit in hits]]), flush=True)
"""


def change_it(index: Path, photos: Path, number: int) -> None:
    """One of every kind of change."""
    new = photos / f"new{number}.png"
    new.write_bytes(encoded(colour_of(500 + number)))
    add_images(index, [new], encoder=FakeEncoder())
    (photos / "summer" / "001.png").write_bytes(encoded(colour_of(900 + number)))
    update_index(index, encoder=FakeEncoder())
    (photos / "003.png").write_bytes(encoded(colour_of(950 + number)))
    build_index(photos, index, encoder=FakeEncoder())
    remove_images(index, Selection(keys=[new.name]))
    compact_index(index)


def test_readers_see_whole_generations_only(index, photos, monkeypatch):
    """Four that open the index anew for every question, in processes of their own, and four threads that keep it."""
    monkeypatch.setattr(transaction, "CHECKPOINT_SECONDS", 0.0)
    states: dict[int, list[str]] = {}

    def note_state() -> None:
        with open_index(index) as opened:
            keys = sorted(row.key for rows in opened.items.each() for row in rows)
            states[opened.manifest.generation] = keys

    real = transaction.write_manifest

    def committing(folder: Path, manifest: object) -> None:
        real(folder, manifest)
        note_state()

    note_state()
    monkeypatch.setattr(transaction, "write_manifest", committing)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    command = [sys.executable, "-c", READER, str(index)]
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    stop, problems, kept = threading.Event(), [], []

    def keep_reading() -> None:
        try:
            while not stop.wait(0.001):
                with open_index(index) as opened:
                    before = opened.search(QUERY, k=1000)
                    for _ in range(5):
                        assert opened.search(QUERY, k=1000) == before
                    kept.append((opened.manifest.generation, sorted(hit.key for hit in before[0])))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=keep_reading) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for thread in threads:
        thread.start()
    answers = []
    for number in range(3):
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("again\n" * 4)
            process.stdin.flush()
        change_it(index, photos, number)
    stop.set()
    for thread in threads:
        thread.join()
    for process in processes:
        out, _ = process.communicate(timeout=120)
        answers += [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0
    assert problems == []
    assert len(answers) == 4 * 3 * 4
    assert kept
    for number, count, hits, known, filtered, scores in answers:
        assert hits == known == filtered == states[number]
        assert (count, scores) == (len(hits), sorted(scores, reverse=True))
    for number, keys in kept:
        assert keys == states[number]
    assert len({number for number, *_ in answers} | {number for number, _ in kept}) > 3


@pytest.mark.parametrize(
    "write",
    [
        lambda index, photos: update_index(index, encoder=FakeEncoder()),
        lambda index, photos: add_images(index, [photos / "000.png"], encoder=FakeEncoder()),
        lambda index, photos: remove_images(index, Selection(keys=["000.png"])),
        lambda index, photos: compact_index(index),
        lambda index, photos: repair_index(index),
        lambda index, photos: build_index(photos, index, encoder=FakeEncoder()),
    ],
)
def test_second_writer_is_refused(index, photos, write):
    before = (index / "manifest.json").read_bytes()
    with (
        store.lock(index),
        pytest.raises(IndexConflictError, match=r"another process is writing .*wait for it"),
    ):
        write(index, photos)
    assert (index / "manifest.json").read_bytes() == before


def test_read_only_index_can_be_searched_and_not_changed(small_disk, photos):
    index = small_disk.path / "i"
    build_index(photos, index, encoder=FakeEncoder())
    remove_images(index, Selection(keys=["000.png"]))
    small_disk.remount("ro")
    with open_index(index) as opened:
        assert len(opened.search(QUERY, k=100)[0]) == 29
        assert len(opened.search(QUERY, k=100, where="key LIKE 'summer/%'")[0]) == 20
        assert opened.verify().ok
    says = "cannot write the index at .*: Read-only file system. It can be searched; to change it, copy it"
    for write in (
        lambda: update_index(index, encoder=FakeEncoder()),
        lambda: remove_images(index, Selection(keys=["003.png"])),
        lambda: compact_index(index),
    ):
        with pytest.raises(IndexWriteError, match=says):
            write()
    small_disk.remount("rw")
    assert remove_images(index, Selection(keys=["003.png"])).items == 28


def test_transaction_refuses_items_of_another_index(index, photos, tmp_path):
    build_index(photos, tmp_path / "other", encoder=FakeEncoder())
    shutil.copy(tmp_path / "other" / "items-00001.db", index / "items-00001.db")
    before = (index / "items-00001.db").read_bytes()
    for write in (
        lambda: update_index(index, encoder=FakeEncoder()),
        lambda: remove_images(index, Selection(keys=["000.png"])),
        lambda: compact_index(index),
        lambda: open_index(index),
    ):
        with pytest.raises(IndexDamagedError, match=r"items-00001\.db belongs to another index"):
            write()
    assert (index / "items-00001.db").read_bytes() == before


def test_open_index_refuses_items_older_than_the_manifest(index, photos):
    """As when one file of an index is put back from a copy."""
    old = (index / "items-00001.db").read_bytes()
    put(photos, numbered(range(3), name="new{}.png", colours=700))
    update_index(index, encoder=FakeEncoder())
    (index / "items-00001.db").write_bytes(old)
    with pytest.raises(IndexDamagedError, match=r"items-00001\.db (belongs to another index|is damaged)"):
        open_index(index)


def test_items_reader_does_not_take_a_lock_for_damage(index, photos, monkeypatch):
    """As while something else holds them: a build that took that for damage would embed everything again."""
    monkeypatch.setattr(items, "_PATIENCE", 0.05)
    before = {file.name: file.read_bytes() for file in index.iterdir()}
    with closing(sqlite3.connect(index / "items-00001.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        for change in (lambda: build_index(photos, index, encoder=FakeEncoder()), lambda: open_index(index)):
            with pytest.raises(
                IndexerError, match=r"items-00001\.db cannot be read now: .*run the command again"
            ):
                change()
        db.execute("ROLLBACK")
    assert {file.name: file.read_bytes() for file in index.iterdir()} == before
