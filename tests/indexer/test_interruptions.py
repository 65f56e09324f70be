"""Builds that are killed, interrupted, or run out of disk, in processes of their own."""

from __future__ import annotations

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
from llm2clip.indexer import BuildOptions, IndexNotFoundError, IndexWriteError, build_index, open_index
from llm2clip.indexer.storage import transaction

from .material import colour_of, content, encoded

DRIVER = Path(__file__).with_name("driver.py")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes with POSIX signals")


class Counting(FakeEncoder):
    @property
    def embedded(self) -> int:
        return sum(self.image_batches)


def start(photos: Path, index: Path, *, wait_at: str = "") -> subprocess.Popen[str]:
    arguments = ["build", str(photos), "--index", str(index), "--encoder", "fake16", "--batch-size", "4"]
    return subprocess.Popen(
        [sys.executable, str(DRIVER), wait_at, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_at(photos: Path, index: Path, marker: str, how: signal.Signals) -> tuple[int, str]:
    """Build, and send a signal at ``marker``; the exit status and what was written on standard error."""
    process = start(photos, index, wait_at=marker)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == marker:
            process.send_signal(how)
            break
    else:
        pytest.fail(f"never came to {marker!r}: {process.communicate()[1]}")
    _, errors = process.communicate(timeout=250)
    return process.returncode, errors


# Thirty images in batches of four: eight batches.
WRITING = 8
"""Images that may be embedded and not written yet when the process is killed: two batches."""
POINTS = [
    ("load", 0, False),
    ("batch 1", 0, False),
    ("batch 5", 16, False),
    ("batch 8", 28, False),
    ("before join_small", 30, False),
    ("before write_manifest", 30, False),
    ("after write_manifest", 30, True),
    ("before clean", 30, True),
    ("after clean", 30, True),
]


def check_whole(index: Path, photos: Path, folder: Path) -> None:
    build_index(photos, folder / "whole", encoder=FakeEncoder())
    with open_index(index) as one, open_index(folder / "whole") as other:
        assert content(one) == content(other)
        assert one.verify().problems == ()
        assert sorted(os.listdir(index)) == sorted(
            [*one.manifest.files, one.manifest.items_file, "lock", "manifest.json"]
        )


@pytest.mark.parametrize(("marker", "kept", "committed"), POINTS)
def test_a_killed_build_goes_on(photos, tmp_path, marker, kept, committed):
    assert stop_at(photos, tmp_path / "i", marker, signal.SIGKILL)[0] == -signal.SIGKILL
    if committed:
        with open_index(tmp_path / "i") as index:
            assert (len(index), index.verify().ok) == (30, True)
    else:
        with pytest.raises(IndexNotFoundError):
            open_index(tmp_path / "i")
    encoder = Counting()
    report = build_index(photos, tmp_path / "i", encoder=encoder)
    assert (report.items, encoder.embedded) == (30, 30 - report.kept)
    assert kept - (WRITING if marker.startswith("batch") else 0) <= report.kept <= kept
    if marker not in ("after write_manifest", "before clean"):
        check_whole(tmp_path / "i", photos, tmp_path)


@pytest.mark.parametrize(("marker", "kept", "committed"), [POINTS[2], *POINTS[4:7]])
def test_a_killed_rebuild_leaves_the_old_index_or_the_new(photos, tmp_path, marker, kept, committed):
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    for number in range(30):
        next(photos.rglob(f"{number:03d}.png")).write_bytes(encoded(colour_of(100 + number), size=(30, 30)))
    stop_at(photos, tmp_path / "i", marker, signal.SIGKILL)
    with open_index(tmp_path / "i") as index:
        assert {row.width for rows in index.items.each() for row in rows} == {30 if committed else 12}
        assert (len(index), index.verify().ok) == (30, True)
    encoder = Counting()
    report = build_index(photos, tmp_path / "i", encoder=encoder)
    assert (report.items, encoder.embedded) == (30, 30 - report.kept)
    assert kept - (WRITING if marker.startswith("batch") else 0) <= report.kept <= kept
    with open_index(tmp_path / "i") as index:
        assert {row.width for rows in index.items.each() for row in rows} == {30}


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("load", "interrupted: nothing was done yet\n"),
        ("batch 1", "interrupted: nothing was done yet\n"),
        ("batch 4", "interrupted: 12 images are kept, the same command goes on from there\n"),
        ("before join_small", "interrupted: 30 images are kept, the same command goes on from there\n"),
        ("after write_manifest", "interrupted: 30 images are kept, the same command goes on from there\n"),
    ],
)
def test_ctrl_c_says_in_one_line_how_to_go_on(photos, tmp_path, marker, says):
    assert stop_at(photos, tmp_path / "i", marker, signal.SIGINT) == (130, says)
    again = start(photos, tmp_path / "i")
    out, errors = again.communicate(timeout=250)
    assert (again.returncode, errors) == (0, "")
    assert f"Index:  {tmp_path}/i" in out
    with open_index(tmp_path / "i") as index:
        assert (len(index), index.verify().ok) == (30, True)


@pytest.fixture
def big_vectors(tmp_path: Path) -> tuple[Path, FakeEncoder]:
    """Images and an encoder whose vectors take 1.2 MB."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03d}.png").write_bytes(encoded(colour_of(number)))
    return folder, FakeEncoder(dim=2048)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here (needs root); the file size limit is tested all the same")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_keeps_what_was_done(small_disk, big_vectors, monkeypatch):
    monkeypatch.setattr(transaction, "CHECKPOINT_SECONDS", 0.0)
    photos, encoder = big_vectors
    options = BuildOptions(batch_size=16)
    with pytest.raises(
        IndexWriteError, match=r"cannot write the index at .*/i: .*(No space left|full).*run the same"
    ) as failure:
        build_index(photos, small_disk / "i", encoder=encoder, options=options)
    assert re.search(r"make room and run the same command again$", str(failure.value))
    with pytest.raises(IndexNotFoundError, match=r"is not finished"):
        open_index(small_disk / "i")
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    report = build_index(photos, small_disk / "i", encoder=encoder, options=options)
    assert report.kept > 0
    assert (report.items, report.kept + report.embedded) == (300, 300)
    with open_index(small_disk / "i") as index:
        assert index.verify().ok


def test_a_full_disk_leaves_the_index_that_was_there(small_disk, big_vectors):
    photos, encoder = big_vectors
    (photos / "later").mkdir()
    for number in range(50, 300):
        (photos / f"{number:03d}.png").rename(photos / "later" / f"{number:03d}.jpgx")
    build_index(photos, small_disk / "i", encoder=FakeEncoder(dim=2048))
    for number in range(50, 300):
        (photos / "later" / f"{number:03d}.jpgx").rename(photos / f"{number:03d}.png")
    with pytest.raises(IndexWriteError):
        build_index(photos, small_disk / "i", encoder=encoder)
    with open_index(small_disk / "i") as index:
        assert (len(index), index.verify().ok) == (50, True)


@pytest.mark.parametrize("limit", [1_000, 40_000, 700_000])
def test_a_file_size_limit_is_reported_in_one_line(big_vectors, tmp_path, limit):
    """Stands in for a full disk or quota where no file system can be mounted; the limit hits files of all kinds."""
    photos, _ = big_vectors
    arguments = ["build", str(photos), "--index", str(tmp_path / "i"), "--encoder", "fake2048"]
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
    encoder = Counting(dim=2048)
    assert build_index(photos, tmp_path / "i", encoder=encoder).items == 300
    with open_index(tmp_path / "i") as index:
        assert index.verify().ok
