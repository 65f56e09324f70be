"""Changes of an index during which the power fails, a step fails, or others read: nothing is lost or half done.

Each function is an attack of ``attack.py``: it makes attempts in a folder, and yields what came of each.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    BuildOptions,
    Selection,
    add_images,
    build_index,
    compact_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.lifecycle.export import export_index
from llm2clip.indexer.lifecycle.move import move_sources
from llm2clip.indexer.lifecycle.repair import repair_index
from llm2clip.indexer.lifecycle.undo import undo_change

from .disk import Failing, Recorder, watched
from .material import Stopping, content, flip, numbered, put

State = tuple[Mapping[Any, Any], list[Any]]
_PLACES = 8
"""Moments of a change at which the power fails, one after the other."""
_OPTIONS = BuildOptions(batch_size=4)


@dataclass(frozen=True)
class Change:
    """A change of an index."""

    prepare: Callable[[Path, Path], object]
    """Makes images and an index."""
    apply: Callable[[Path, Path], object]
    """The change: of the index, and the images that it may read."""
    again: bool = True
    """Whether it can be applied to its own result, which stays as it is."""
    repairs: bool = False
    """Whether the index is damaged before it."""


def _made(photos: Path, index: Path) -> None:
    put(photos, numbered(range(12)))
    for number in range(0, 12, 3):
        (photos / f"{number:03d}.txt").write_text(f"caption {number}")
    build_index(photos, index, encoder=FakeEncoder(), options=_OPTIONS)


def _changed(photos: Path, index: Path) -> None:
    _made(photos, index)
    (photos / "004.png").unlink()
    put(photos, numbered(range(20, 24)))
    (photos / "003.txt").write_text("another caption")
    (photos / "000.png").rename(photos / "moved.png")
    (photos / "bad.png").write_bytes(b"no image")


def _stopped(photos: Path, index: Path) -> None:
    _changed(photos, index)
    with suppress(KeyboardInterrupt):
        update_index(index, encoder=Stopping(1), options=BuildOptions(batch_size=2))


def _removed(photos: Path, index: Path) -> None:
    _made(photos, index)
    remove_images(index, Selection(keys=["005.png"]))


def _moved(photos: Path, index: Path) -> None:
    _made(photos, index)
    photos.rename(photos.with_name("elsewhere"))


def _damaged(photos: Path, index: Path) -> None:
    _made(photos, index)
    flip(next(index.glob("vectors-*")), -5)


def _build(photos: Path, index: Path) -> None:
    build_index(photos, index, encoder=FakeEncoder(), options=_OPTIONS)


def _update(photos: Path, index: Path) -> None:
    update_index(index, encoder=FakeEncoder(), options=_OPTIONS)


def _overwrite(photos: Path, index: Path) -> None:
    build_index(photos, index, encoder=FakeEncoder(), options=BuildOptions(overwrite=True))


def _move(photos: Path, index: Path) -> None:
    move_sources(index, photos, photos.with_name("elsewhere"))


CHANGES = {
    "build": Change(lambda photos, index: put(photos, numbered(range(12))), _build),
    "update": Change(_changed, _update),
    "resume": Change(_stopped, _update),
    "rebuild": Change(_changed, _build),
    "overwrite": Change(_changed, _overwrite),
    "add": Change(
        _changed, lambda photos, index: add_images(index, [photos / "020.png"], encoder=FakeEncoder())
    ),
    "remove": Change(
        _made, lambda photos, index: remove_images(index, Selection(keys=["001.png"])), again=False
    ),
    "undo": Change(_removed, lambda photos, index: undo_change(index), again=False),
    "compact": Change(_removed, lambda photos, index: compact_index(index)),
    "move": Change(_moved, _move, again=False),
    "repair": Change(_damaged, lambda photos, index: repair_index(index), repairs=True),
}


class Trial:
    """A change with the index before it and after it."""

    def __init__(self, work: Path, name: str) -> None:
        self.name, self.change = name, CHANGES[name]
        self.photos, self.base = work / name / "photos", work / name / "base"
        if not self.photos.parent.exists():
            self.change.prepare(self.photos, self.base)
            self.base.mkdir(exist_ok=True)
        self.before = _state(self.base)
        last = self.fresh(work / name / "after")
        self.change.apply(self.photos, last)
        self.after = _state(last)
        assert self.after is not None

    def fresh(self, index: Path) -> Path:
        """A copy of the index before the change."""
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(self.base, index)
        return index

    def apply(self, index: Path) -> str:
        """Apply the change; what came of it."""
        try:
            self.change.apply(self.photos, index)
        except (ValueError, OSError) as error:
            return "refused" if "\n" not in str(error) else f"{self.name}: several lines: {error}"
        except Exception as error:
            return f"{self.name}: traceback {type(error).__name__}: {error}"
        return "answered"

    def judge(self, index: Path, *, done: bool) -> str:
        """Whether an index is that of before or of after, and can be changed as it could before.

        ``done``: the change was reported as done.
        """
        try:
            found = _state(index)
            if found not in (self.before, self.after) or (done and found != self.after):
                return f"{'done, but ' if done else ''}neither before nor after"
            repaired = not self.change.repairs or (done and found == self.after)
            if repaired and found is not None and (problems := _problems(index)):
                return f"damaged: {problems[0]}"
            if found != self.after or self.change.again:
                self.change.apply(self.photos, index)
            if _state(index) != self.after:
                return "another attempt ended in something else"
            if problems := _problems(index):
                return f"damaged after another attempt: {problems[0]}"
            return _left_over(index)
        except (ValueError, OSError) as error:
            return f"refused: {error}"


def _state(index: Path) -> State | None:
    if not (index / "manifest.json").exists():
        return None
    with open_index(index) as opened:
        return content(opened), [*opened.manifest.sources, *opened.items.errors(every=True)]


def _problems(index: Path) -> tuple[str, ...]:
    with open_index(index) as opened:
        return opened.verify().problems


def _left_over(index: Path) -> str:
    with open_index(index) as opened:
        own = {*opened.manifest.files, opened.manifest.items_file, "manifest.json", "lock", "writer"}
    left = sorted(set(os.listdir(index)) - own)
    return f"files are left: {left}" if left else "answered"


_trials: dict[tuple[Path, str], Trial] = {}


def _trial(work: Path, rng: random.Random) -> Trial:
    name = rng.choice(list(CHANGES))
    if (work, name) not in _trials:
        _trials[work, name] = Trial(work, name)
    return _trials[work, name]


def power_losses(work: Path, rng: random.Random) -> Iterator[str]:
    """The power fails during a change: whatever part of the unflushed writes is on the disk, nothing is lost."""
    trial = _trial(work, rng)
    recorder = Recorder(trial.fresh(work / "now"))
    with watched(recorder):
        trial.change.apply(trial.photos, work / "now")
    end = recorder.note("its end")
    for moment in [end, *(rng.choice(recorder.moments) for _ in range(_PLACES - 1))]:
        left = work / "left"
        shutil.rmtree(left, ignore_errors=True)
        put(left, moment.left(rng)).mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            os.utime(left / "writer", (0, 0))  # starting the machine again took more than a minute
        found = trial.judge(left, done=moment is end)
        yield found if found == "answered" else f"{trial.name} at {moment.step}: {found}"


def failing_steps(work: Path, rng: random.Random) -> Iterator[str]:
    """A step of a change fails, or every step from one on."""
    trial = _trial(work, rng)
    counter = Failing(0, OSError())
    with watched(counter):
        trial.change.apply(trial.photos, trial.fresh(work / "now"))
    number = rng.choice([errno.EIO, errno.ENOSPC, errno.EACCES])
    at, lasting = rng.randint(1, counter.count), rng.random() < 0.5
    index = trial.fresh(work / "now")
    with watched(Failing(at, OSError(number, os.strerror(number)), lasting=lasting)):
        outcome = trial.apply(index)
    found = trial.judge(index, done=outcome == "answered") if outcome in ("answered", "refused") else outcome
    yield outcome if found == "answered" else f"{trial.name} at {at} of {counter.count}, {number}: {found}"


def failing_exports(work: Path, rng: random.Random) -> Iterator[str]:
    """A step of an export fails, or the power: its files are there as a whole or not at all, and it can be repeated."""
    trial = _trial(work, rng)
    if trial.change.repairs or trial.before is None:
        return
    out, format = work / "out", rng.choice(["npy", "parquet"])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    recorder = Recorder(out)
    with watched(recorder):
        export_index(trial.base, out, format=format)
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    for moment in rng.choices(recorder.moments, k=_PLACES):
        cut = [name for name, data in moment.left(rng).items() if name[0] != "." and whole.get(name) != data]
        yield f"export at {moment.step}: {cut[0]} is not whole" if cut else "answered"
    shutil.rmtree(out)
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        with watched(Failing(rng.randint(1, len(recorder.moments)), error, lasting=True)):
            export_index(trial.base, out, format=format)
        outcome = "answered"
    except (ValueError, OSError):
        outcome = "refused"
    if outcome == "refused":
        export_index(trial.base, out, format=format)
    same = {file.name: file.read_bytes() for file in out.iterdir()} == whole
    yield outcome if same else "export: other files than without the error"


def concurrent_readers(work: Path, rng: random.Random) -> Iterator[str]:
    """Threads search while an index is changed: each answer is of one whole generation."""
    shutil.rmtree(work / "shared", ignore_errors=True)
    photos, index = work / "shared" / "photos", work / "shared" / "index"
    _made(photos, index)
    query, stop = np.eye(1, 16, dtype=np.float32), threading.Event()
    answers, wrong, keys = list[tuple[int, list[str]]](), list[str](), dict[int, list[str]]()

    def read() -> None:
        while not stop.is_set():
            try:
                with open_index(index) as opened:
                    found = sorted(hit.key for hit in opened.search(query, k=1000)[0])
                    answers.append((opened.manifest.generation, found))
            except Exception as error:
                wrong.append(f"reader: {type(error).__name__}: {error}")

    def note() -> None:
        with open_index(index) as opened:
            keys[opened.manifest.generation] = sorted(row.key for rows in opened.items.each() for row in rows)

    note()
    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(5):
            put(photos, numbered(range(30 + turn, 32 + turn)))
            (photos / f"{turn:03d}.png").unlink()
            _update(photos, index)
            note()
            if rng.random() < 0.5:
                remove_images(index, Selection(keys=[f"{30 + turn:03d}.png"]))
                note()
            if rng.random() < 0.3:
                compact_index(index)
                note()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    yield from wrong
    for generation, found in answers:
        yield "answered" if keys.get(generation) == found else "a reader saw no whole generation"
