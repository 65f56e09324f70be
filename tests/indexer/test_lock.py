"""One writer at a time: also without ``flock``, and when the other is on another machine."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    IndexConflictError,
    Selection,
    add_images,
    build_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.lifecycle.sync import Transaction
from llm2clip.indexer.storage import lock as locks
from llm2clip.indexer.storage.lock import OWNER, STALE_SECONDS, lock
from llm2clip.indexer.storage.manifest import read_manifest
from llm2clip.indexer.storage.transaction import open_for_write
from llm2clip.indexer.storage.vector_segments import SegmentWriter, segment_name

from .material import numbered, put, whole


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def has_flock(request, monkeypatch) -> bool:
    """Whether the file system has ``flock``."""
    if not request.param:

        def no_locks(file):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks, "_flock", no_locks)
    return bool(request.param)


def owner(index: Path, *, machine: str, age: float = 0.0) -> Path:
    """The file of a writer of another process, which was last heard of some seconds ago."""
    path = index / OWNER
    path.write_text(json.dumps({"machine": machine, "host": "barn", "process": "77", "nonce": "x"}))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def test_second_writer_is_refused_without_flock(index, has_flock):
    with lock(index), pytest.raises(IndexConflictError, match=r"another process is writing .*wait for it"):
        remove_images(index, Selection(keys=["000.png"]))
    assert remove_images(index, Selection(keys=["000.png"])).items == 29
    assert not (index / OWNER).exists()


def test_writer_on_another_machine_is_waited_for(index, has_flock):
    path = owner(index, machine="another", age=STALE_SECONDS - 20)
    with pytest.raises(
        IndexConflictError, match=r"process 77 on barn.*wait (19|20) seconds or delete .*writer"
    ):
        update_index(index, encoder=FakeEncoder())
    assert path.exists()


def test_writer_that_is_silent_does_not_count(index, has_flock):
    owner(index, machine="another", age=STALE_SECONDS + 1)
    assert remove_images(index, Selection(keys=["000.png"])).items == 29
    assert not (index / OWNER).exists()


def test_writer_that_was_killed_on_this_machine_does_not_count(index, monkeypatch):
    """``flock`` says that it ended. Without, only its silence does."""
    owner(index, machine=locks._machine())
    assert remove_images(index, Selection(keys=["000.png"])).items == 29


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"machine": 5}', b"[" * 5000])
def test_writer_file_of_anything_is_waited_for_and_no_longer(index, content):
    path = index / OWNER
    path.write_bytes(content)
    with pytest.raises(IndexConflictError, match="another process is writing"):
        remove_images(index, Selection(keys=["000.png"]))
    os.utime(path, (0, 0))
    assert remove_images(index, Selection(keys=["000.png"])).items == 29


def test_writer_that_was_killed_before_it_wrote_its_file_does_not_count(index, monkeypatch):
    monkeypatch.setattr(locks, "_WRITTEN_SECONDS", 0.01)
    (index / OWNER).touch()
    assert remove_images(index, Selection(keys=["000.png"])).items == 29
    assert not (index / OWNER).exists()


def test_writer_renews_its_file(index, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    with lock(index):
        os.utime(index / OWNER, (0, 0))
        for _ in range(1000):
            if (index / OWNER).stat().st_mtime > 1:
                break
            locks.time.sleep(0.01)
        assert (index / OWNER).stat().st_mtime > 1


def test_writer_that_was_taken_for_dead_commits_nothing(index, photos):
    """As a machine that slept: meanwhile another took the lock, changed the index and went."""
    put(photos, numbered(range(3), name="new{}.png", colours=700))
    before = whole(index)

    def removes(meanwhile: Callable[[], object]) -> None:
        with open_for_write(index) as manifest, Transaction.begin(index, manifest) as transaction:
            transaction.remove([1])
            meanwhile()
            transaction.commit(transaction.finish())

    with pytest.raises(IndexConflictError, match=r"another process is writing .*nothing was committed"):
        removes(lambda: owner(index, machine="another"))
    assert json.loads((index / OWNER).read_text())["host"] == "barn", "the file of the other is not deleted"
    (index / OWNER).unlink()
    assert whole(index) == before

    def changed() -> None:
        content = (index / "manifest.json").read_text()
        (index / "manifest.json").write_text(content.replace('"generation": 1', '"generation": 6'))

    with pytest.raises(IndexConflictError, match=r"another process changed .*nothing was committed"):
        removes(changed)


def test_segments_are_created_exclusively(tmp_path):
    (tmp_path / segment_name(3, 0)).write_bytes(b"of another writer")
    writer = SegmentWriter(tmp_path, generation=3, dim=2)
    with pytest.raises(FileExistsError):
        writer.append(np.ones((1, 2), dtype=np.float16))
    assert (tmp_path / segment_name(3, 0)).read_bytes() == b"of another writer"


WRITER = """
import errno, sys
from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import BuildOptions, IndexConflictError, add_images
from llm2clip.indexer.storage import lock
def no_locks(file):
    raise OSError(errno.ENOLCK, "No locks available")
lock._flock = no_locks
print("ready", flush=True)
sys.stdin.readline()
try:
    add_images(sys.argv[1], [sys.argv[2]], encoder=FakeEncoder(), options=BuildOptions(batch_size=4))
    print("ok")
except IndexConflictError:
    print("refused")
"""


def test_two_writers_without_flock_leave_a_whole_index(tmp_path):
    photos = put(tmp_path / "photos", numbered(range(10)))
    index = tmp_path / "i"
    build_index(photos, index, encoder=FakeEncoder())
    more = [put(tmp_path / name, numbered(range(20), colours=100 * n + 100)) for n, name in enumerate("ab")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(index), str(each)], **pipes) for each in more
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert set(said) <= {"ok", "refused"}
    assert "ok" in said
    assert len(whole(index)) == 10 + 20 * said.count("ok")
    for each in more:
        add_images(index, [each], encoder=FakeEncoder())
    assert len(whole(index)) == 50
    with open_index(index) as opened:
        assert opened.manifest.generation == read_manifest(index).generation
