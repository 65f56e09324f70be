"""Writers that are killed, interrupted, or run out of disk: the index is as before or after, and the next goes on."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    BuildOptions,
    EncoderMismatchError,
    IndexConflictError,
    IndexNotFoundError,
    IndexWriteError,
    Selection,
    build_index,
    compact_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.storage import transaction
from llm2clip.indexer.storage.manifest import read_manifest

from .crashing import OPERATIONS, Crashes, QuickEncoder, hashed
from .material import Stopping, encoded, numbered, put, whole

DRIVER = Path(__file__).with_name("driver.py")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes with POSIX signals")

STEPS = ("join_small", "write_manifest", "clean")
POINTS = ["batch 1", "batch 2", *(f"{when} {step}" for step in STEPS for when in ("before", "after"))]
COMMITTED = POINTS.index("after write_manifest")


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "CHECKPOINT_SECONDS", 0.0)  # every batch is a place to go on from
        made = Crashes(tmp_path_factory.mktemp("crashes"), seed=0)
        made.round("build")
        yield made


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", [*OPERATIONS, "rebuild"])
def test_killed_operation_leaves_the_state_before_or_after(crashes, name, point):
    for first in {"remove": ["add"], "compact": ["add", "remove"]}.get(name, []):  # so that there is work
        change, _, changed = crashes.prepare(first, more=16)
        change()
        crashes.known = set(changed)
    operation, before, after = crashes.prepare(name, more=16)
    encodes = name not in ("remove", "compact")
    assert crashes.kill_at(name, operation, point) == (encodes or "batch" not in point), "never came to it"
    expected = after if POINTS.index(point) >= COMMITTED or (not encodes and "batch" in point) else before
    found = crashes.holds()
    assert found == (None if expected is None else hashed(expected))
    if found != hashed(after) or name == "compact":
        operation()  # the same command goes on
        assert crashes.holds() == hashed(after)
    crashes.known = set(after)
    if found == hashed(after):
        compact_index(crashes.index)  # cleans up what a kill after the commit left
    with open_index(crashes.index) as index:
        own = {*index.manifest.files, index.manifest.items_file, "manifest.json", "lock"}
    assert own == set(os.listdir(crashes.index))


WRITING = 16
"""Images that may be encoded and not written yet when the process is killed: two batches."""


@pytest.mark.parametrize(
    ("point", "encoded"),
    [
        ("batch 1", 0),
        ("batch 4", 24),
        ("batch 5", 32),
        ("before join_small", 40),
        ("before write_manifest", 40),
        ("after write_manifest", 40),
    ],
)
@pytest.mark.parametrize("name", ["build", "rebuild"])
def test_killed_build_keeps_its_work(tmp_path, monkeypatch, name, point, encoded):
    monkeypatch.setattr(transaction, "CHECKPOINT_SECONDS", 0.0)
    batches: list[int] = []
    encode = QuickEncoder.encode_prepared
    monkeypatch.setattr(
        QuickEncoder,
        "encode_prepared",
        lambda self, pixels: batches.append(len(pixels)) or encode(self, pixels),
    )
    crashes = Crashes(tmp_path, seed=0)
    operation, _, after = crashes.prepare("build")
    if name == "rebuild":
        operation()
        for key in crashes.there():
            crashes.write(key)
        after = crashes.state(set(crashes.there()))
    assert crashes.kill_at(name, operation, point), f"never came to {point!r}"
    batches.clear()
    report = operation()
    assert (report.items, report.embedded, sum(batches)) == (40, 40 - report.kept, report.embedded)
    assert encoded - (WRITING if "batch" in point else 0) <= report.kept <= encoded
    assert crashes.holds() == hashed(after)


def test_writers_killed_at_random_leave_what_was_committed():
    """``crashing.py`` kills three hundred with one command."""
    command = [sys.executable, str(Path(__file__).with_name("crashing.py")), "--kills", "20", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["total"] >= 20
    assert set(found["kills"]) == set(OPERATIONS)
    assert found["left"]["before"] >= 1


def interrupt(photos: Path, index: Path, after: int, *, overwrite: bool = False) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(
            photos, index, encoder=Stopping(after), options=BuildOptions(batch_size=4, overwrite=overwrite)
        )


def test_build_index_resumes_after_each_interruption(photos, tmp_path):
    for stop in (2, 1, 3):
        interrupt(photos, tmp_path / "i", stop)
        with pytest.raises(
            IndexNotFoundError, match=r"is unfinished: \d+ images so far. Continue with: llm2clip-index"
        ):
            open_index(tmp_path / "i")
    report = build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    assert (report.embedded, report.kept, report.items) == (6, 24, 30)
    build_index(photos, tmp_path / "whole", encoder=FakeEncoder())
    assert whole(tmp_path / "i") == whole(tmp_path / "whole")
    manifest = read_manifest(tmp_path / "i")
    own = {*manifest.files, manifest.items_file, "manifest.json", "lock"}
    assert set(os.listdir(tmp_path / "i")) == own


def test_build_index_encodes_what_changed_since_the_interruption(photos, tmp_path):
    interrupt(photos, tmp_path / "i", 5)
    (photos / "003.png").write_bytes(encoded((9, 9, 9), size=(30, 30)))
    (photos / "006.png").unlink()
    report = build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    assert (report.items, report.kept, report.embedded) == (29, 18, 11)
    with open_index(tmp_path / "i") as index:
        [[hit]] = index.search(FakeEncoder().encode_images([encoded((9, 9, 9))]), k=1)
        assert (hit.key, hit.width) == ("003.png", 30)


def test_build_index_refuses_an_unfinished_build_of_something_else(photos, shards, tmp_path):
    interrupt(photos, tmp_path / "i", 1)
    with pytest.raises(IndexConflictError, match="holds an unfinished build of"):
        build_index(shards, tmp_path / "i", encoder=FakeEncoder())
    with pytest.raises(EncoderMismatchError, match=r"got 'fake' .dim 8."):
        build_index(photos, tmp_path / "i", encoder=FakeEncoder(dim=8))
    report = build_index(shards, tmp_path / "i", encoder=FakeEncoder(), options=BuildOptions(overwrite=True))
    assert report.items == 5


def test_build_index_resumes_overwriting_without_the_old_index(photos, tmp_path):
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    interrupt(photos, tmp_path / "i", 2, overwrite=True)
    with open_index(tmp_path / "i") as index:
        assert index.manifest.generation == 1
    report = build_index(photos, tmp_path / "i", encoder=FakeEncoder(), options=BuildOptions(overwrite=True))
    assert (report.kept, report.embedded) == (8, 22)


def test_build_index_leaves_nothing_if_interrupted_at_once(photos, tmp_path):
    interrupt(photos, tmp_path / "i", 0)
    assert not (tmp_path / "i").exists()


def start(photos: Path, index: Path, *, wait_at: str = "") -> subprocess.Popen[str]:
    arguments = ["build", str(photos), "--index", str(index), "--encoder", "fake16", "--batch-size", "4"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, str(DRIVER), wait_at, *arguments], **pipes, text=True)


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("load", "interrupted: nothing was done yet\n"),
        ("batch 4", "interrupted: 12 images are kept; run the same command again to continue\n"),
        ("batch 1", "interrupted: nothing was done yet\n"),
        ("before join_small", "interrupted: 30 images are kept; run the same command again to continue\n"),
        ("after write_manifest", "interrupted: 30 images are kept; run the same command again to continue\n"),
    ],
)
def test_ctrl_c_says_in_one_line_how_to_go_on(photos, tmp_path, marker, says):
    process = start(photos, tmp_path / "i", wait_at=marker)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == marker:
            process.send_signal(signal.SIGINT)
            break
    else:
        pytest.fail(f"never came to {marker!r}: {process.communicate()[1]}")
    _, errors = process.communicate(timeout=250)
    assert (process.returncode, errors) == (130, says)
    again = start(photos, tmp_path / "i")
    out, errors = again.communicate(timeout=250)
    assert (again.returncode, errors) == (0, "")
    assert f"Index:  {tmp_path}/i" in out
    assert len(whole(tmp_path / "i")) == 30


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Images whose vectors of dimension 2048 take 1.2 MB."""
    return put(tmp_path / "many", numbered(range(300)))


def test_full_disk_keeps_what_a_build_did(small_disk, many, monkeypatch):
    monkeypatch.setattr(transaction, "CHECKPOINT_SECONDS", 0.0)
    encoder, options, index = FakeEncoder(dim=2048), BuildOptions(batch_size=16), small_disk.path / "i"
    small_disk.resize("700k")
    with pytest.raises(
        IndexWriteError, match=r"cannot write the index at .*/i: .*(No space left|full).*run the same"
    ) as failure:
        build_index(many, index, encoder=encoder, options=options)
    assert re.search(r"free disk space and run the same command again$", str(failure.value))
    with pytest.raises(IndexNotFoundError, match=r"is unfinished"):
        open_index(index)
    small_disk.resize("64m")
    report = build_index(many, index, encoder=encoder, options=options)
    assert report.kept > 0
    assert (report.items, report.kept + report.embedded) == (300, 300)
    assert len(whole(index)) == 300


def test_full_disk_leaves_the_index_as_it_was(small_disk, photos):
    index, encoder = small_disk.path / "i", FakeEncoder(dim=2048)
    build_index(photos, index, encoder=encoder)
    put(photos, numbered(range(200), name="more{}.png", colours=2000))
    small_disk.leave(300, index)
    for change in (
        lambda: update_index(index, encoder=encoder, options=BuildOptions(batch_size=16)),
        lambda: build_index(photos, index, encoder=encoder),
    ):
        with pytest.raises(IndexWriteError, match="free disk space and run the same command again"):
            change()
        assert len(whole(index)) == 30
    small_disk.resize("64m")
    report = update_index(index, encoder=encoder)
    assert (report.new, report.items) == (200, 230)
    small_disk.leave(200, index)
    remove_images(index, Selection(matching="more1*"))
    with pytest.raises(IndexWriteError, match="free disk space"):
        compact_index(index)
    assert len(whole(index)) == 119
    small_disk.resize("64m")
    assert compact_index(index).items == 119


@pytest.mark.parametrize("limit", [1_000, 700_000])
def test_file_size_limit_is_reported_in_one_line(many, tmp_path, limit):
    """Stands in for a full disk or quota where no file system can be mounted; the limit hits files of all kinds."""
    arguments = ["build", str(many), "--index", str(tmp_path / "i"), "--encoder", "fake2048"]
    done = subprocess.run(
        [sys.executable, str(DRIVER), "", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: cannot write the index at {tmp_path}/i: ")
    assert build_index(many, tmp_path / "i", encoder=FakeEncoder(dim=2048)).items == 300
    whole(tmp_path / "i")
