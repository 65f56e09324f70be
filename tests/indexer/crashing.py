"""Kills writers of an index at random points and looks at what they leave.

    python tests/indexer/crashing.py --kills 300

Each round changes a corpus, lets a process of its own carry the change into the index, and kills it with SIGKILL:
after a random time, or when it is about to do its n-th step (opening, renaming or deleting a file, flushing one to
the disk, appending vectors). What is left must open, verify, and hold exactly what was committed: the state before,
or the state after. Sometimes the process that goes on is killed as well. In the end the change is carried through,
and the content must be that of an uninterrupted run, which is reckoned here from the files alone. Ends with status 1,
and says what happened, if ever it is not.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm2clip.indexer import (
    BuildOptions,
    IndexNotFoundError,
    Selection,
    add_images,
    build_index,
    compact_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.storage import transaction
from llm2clip.indexer.storage.lock import OWNER
from llm2clip.indexer.storage.vector_segments import SegmentWriter

DIM = 16
OPERATIONS = ("build", "add", "update", "remove", "compact")
State = Mapping[str, tuple[bytes, bytes]]
"""Key -> (content, vector) of every image that the index should hold."""


@dataclass(frozen=True)
class Pixels:
    pixels: np.ndarray
    width: int
    height: int


class QuickEncoder:
    """Makes a vector of any bytes, at once."""

    name, dim = "quick", DIM

    @property
    def info(self) -> QuickEncoder:
        return self

    def identity(self) -> dict[str, str | int]:
        return {"name": "quick", "dim": DIM, "weights_sha256": "0", "preprocessing": "none"}

    def prepare(self, image: bytes, *, draft: bool = False) -> Pixels:
        digest = hashlib.shake_128(image).digest(DIM * 3)
        return Pixels(np.frombuffer(digest, np.uint8).reshape(1, DIM, 3), 1 + len(image) % 50, 7)

    def encode_prepared(self, pixels: np.ndarray) -> np.ndarray:
        rows = pixels.astype(np.float32)[:, 0, :, 0] - 127.25
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vector_of(content: bytes) -> bytes:
    encoder = QuickEncoder()
    return encoder.encode_prepared(encoder.prepare(content).pixels[None])[0].astype(np.float16).tobytes()


def dies_before(point: str) -> None:
    """Kill this process at a named point: ``batch 2``, or ``before`` or ``after`` a step of committing."""
    passed: list[str] = []

    def reached(here: str) -> None:
        # Rolling back at the beginning cleans too.
        if here == point and ("clean" not in here or "after write_manifest" in passed):
            os.kill(os.getpid(), signal.SIGKILL)
        passed.append(here)

    def encoding(self: QuickEncoder, pixels: np.ndarray) -> np.ndarray:
        reached(f"batch {1 + sum(each.startswith('batch') for each in passed)}")
        return encode(self, pixels)

    encode = QuickEncoder.encode_prepared
    QuickEncoder.encode_prepared = encoding  # type: ignore[method-assign]
    for name in ("join_small", "write_manifest", "clean"):
        setattr(transaction, name, _reporting(name, getattr(transaction, name), reached))


def _reporting(
    name: str, step: Callable[..., object], reached: Callable[[str], None]
) -> Callable[..., object]:
    def reported(*args: object, **options: object) -> object:
        reached(f"before {name}")
        result = step(*args, **options)
        reached(f"after {name}")
        return result

    return reported


def dies_at(step: int) -> None:
    """Kill this process when it is about to do its ``step``-th step of what matters on a disk."""
    left = step

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, _: object) -> None:
        if event in ("open", "os.rename", "os.remove", "os.truncate", "sqlite3.connect"):
            count()

    sys.addaudithook(audited)
    for owner, name in ((os, "fsync"), (SegmentWriter, "append"), (transaction, "write_manifest")):
        setattr(owner, name, _counting(getattr(owner, name), count))


def _counting(step: Callable[..., object], count: Callable[[], None]) -> Callable[..., object]:
    def counted(*args: object, **options: object) -> object:
        count()
        result = step(*args, **options)
        count()
        return result

    return counted


class Crashes:
    """A corpus and its index, changed again and again by processes that die."""

    def __init__(self, work: Path, *, seed: int) -> None:
        self.random = random.Random(seed)
        self.corpus, self.index = work / "corpus", work / "index"
        self.corpus.mkdir()
        self.serial = 0
        self.out: set[str] = set()
        self.known: set[str] = set()
        self.kills: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.steps: dict[str, int] = dict.fromkeys(OPERATIONS, 40)
        self.seconds: dict[str, float] = dict.fromkeys(OPERATIONS, 0.05)
        self.options = BuildOptions(batch_size=8, workers=2)
        for _ in range(40):
            self.write()

    def write(self, key: str | None = None) -> str:
        """Put an image into the corpus."""
        self.serial += 1
        key = key or f"{self.random.choice('abc')}/{self.serial:05d}.png"
        content = f"image {self.serial} ".encode() * self.random.randint(1, 20)
        file = self.corpus / key
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        return key

    def there(self) -> list[str]:
        return sorted(file.relative_to(self.corpus).as_posix() for file in self.corpus.rglob("*.png"))

    def state(self, keys: set[str]) -> State:
        found = {}
        for key in keys:
            content = (self.corpus / key).read_bytes()
            found[key] = (content, vector_of(content))
        return found

    def holds(self) -> State | None:
        """What the index holds, checked in every way there is; None if there is none."""
        try:
            index = open_index(self.index)
        except IndexNotFoundError:
            return None
        with index:
            report = index.verify()
            assert report.ok, (self.doing, index.manifest.generation, index.items.meta, report.problems)
            found = {}
            for rows in index.items.each():
                vectors = index.vectors.take(np.array([row.id for row in rows]))
                for row, vector in zip(rows, vectors, strict=True):
                    found[row.key] = (row.hash, vector.tobytes())
            assert len(found) == len(index)
            hits = index.search(np.eye(1, DIM, dtype=np.float32), k=10_000)[0]
            assert {hit.key for hit in hits} == found.keys(), "a search finds something else"
            return found

    def prepare(self, name: str, *, more: int = 0) -> tuple[Callable[[], Any], State | None, State]:
        """Change the corpus; the operation that carries it into the index, the content before, the content after.

        With ``more`` an operation that adds images adds so many more.
        """
        choose, encoder = self.random, QuickEncoder()
        before = self.state(self.known)
        there = self.there()
        build = partial(build_index, self.corpus, self.index, encoder=encoder, options=self.options)
        if name == "build":
            shutil.rmtree(self.index, ignore_errors=True)
            self.out = set()
            return build, None, self.state(set(there))
        if name == "add":
            new = [self.write() for _ in range(more + choose.randint(1, 12))]
            paths = [self.corpus / key for key in new]
            return (
                lambda: add_images(self.index, paths, encoder=encoder, options=self.options),
                before,
                self.state(self.known | set(new)),
            )
        if name == "remove":
            keys = choose.sample(sorted(self.known), min(len(self.known) - 1, choose.randint(1, 8)))
            self.out |= set(keys)
            return (
                lambda: remove_images(self.index, Selection(keys=keys)),
                before,
                self.state(self.known - set(keys)),
            )
        if name == "compact":
            return lambda: compact_index(self.index), before, before
        for _ in range(more + choose.randint(0, 6)):
            self.write()
        for key in choose.sample(there, min(len(there), 3)):
            self.write(key)
            self.out -= set() if key in self.out else {key}
        for key in choose.sample(there, 2):
            (self.corpus / key).rename(self.corpus / f"a/moved{self.serial}{Path(key).name}")
            self.out.discard(key)
        for key in choose.sample(self.there(), 2):
            os.utime(self.corpus / key, ns=(self.serial, self.serial))
        victims = self.there()
        for key in choose.sample(victims, min(len(victims) // 8, 4)):
            (self.corpus / key).unlink()
            self.out.discard(key)
        after = set(self.there()) - self.out
        update = partial(update_index, self.index, encoder=encoder, options=self.options)
        return build if name == "rebuild" else update, before, self.state(after)

    def killed(self, name: str, operation: Callable[[], object]) -> bool:
        """Run an operation in a process of its own and kill it; whether it was killed before it ended."""
        if self.random.random() < 0.6:
            step = self.random.randint(1, self.steps[name])
            killed = self._ended(name, operation, lambda: dies_at(step))
            self.steps[name] = self.steps[name] + 2 if killed else max(10, step)
            return killed
        return self._ended(name, operation, kill_after=self.random.uniform(0, self.seconds[name]))

    def kill_at(self, name: str, operation: Callable[[], object], point: str) -> bool:
        """Run an operation in a process of its own and kill it at a named point; whether it came there."""
        self.doing = name
        return self._ended(name, operation, lambda: dies_before(point))

    def _ended(
        self,
        name: str,
        operation: Callable[[], object],
        arm: Callable[[], None] = lambda: None,
        *,
        kill_after: float | None = None,
    ) -> bool:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                arm()
                operation()
                code = 0
            except BaseException as error:
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"died of signal {os.WTERMSIG(status)}"
            return True
        assert os.WEXITSTATUS(status) == 0, f"{name} failed"
        return False

    def round(self, name: str) -> None:
        """One change, killed once or more often, then carried through."""
        operation, before, after = self.prepare(name)
        self.doing = name
        expected_before = None if before is None else hashed(before)
        expected_after = hashed(after)
        committed = False
        while not committed:
            killed = self.killed(name, operation)
            found = self.holds()
            assert found == expected_after or (killed and found == expected_before), (
                f"{name}: neither before nor after: {_difference(found, expected_before)}, "
                f"{_difference(found, expected_after)}"
            )
            committed = found == expected_after and name != "compact"
            if killed:
                self.kills[name] += 1
                self.left["after" if found == expected_after else "before"] += 1
            if not killed or self.random.random() < 0.5:
                break
        if not (committed and name == "remove"):
            began = time.perf_counter()
            operation()
            self.seconds[name] = 0.5 * self.seconds[name] + 0.5 * (time.perf_counter() - began)
        assert self.holds() == expected_after, f"{name}: going on ended in something else"
        self.known = set(after)
        with open_index(self.index) as index:
            own = {*index.manifest.files, index.manifest.items_file, "manifest.json", "lock"}
        if killed and committed and name == "remove":
            own |= {OWNER} & set(
                os.listdir(self.index)
            )  # the killed writer's mark: the next one takes it over
        assert own == set(os.listdir(self.index)), f"{name}: files are left: {os.listdir(self.index)}"


def hashed(state: State) -> dict[str, tuple[bytes, bytes]]:
    return {
        key: (hashlib.blake2b(content, digest_size=16).digest(), vector)
        for key, (content, vector) in state.items()
    }


def _difference(found: State | None, expected: State | None) -> str:
    one, other = dict(found or {}), dict(expected or {})
    wrong = [key for key in one.keys() & other.keys() if one[key] != other[key]]
    more, fewer = sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())
    return f"too many {more[:5]}, missing {fewer[:5]}, other {wrong[:5]}"


def run(work: Path, *, kills: int, seed: int) -> dict[str, object]:
    """Kill until there were so many kills, of every operation equally many."""
    transaction.CHECKPOINT_SECONDS = 0.0  # every batch is a place to go on from
    crashes = Crashes(work, seed=seed)
    began = time.perf_counter()
    while crashes.kills.total() < kills:
        name = min(OPERATIONS, key=lambda name: crashes.kills[name]) if crashes.known else "build"
        name = (
            name if crashes.random.random() < 0.7 or not crashes.known else crashes.random.choice(OPERATIONS)
        )
        crashes.round(name)
    return {
        "kills": dict(crashes.kills),
        "total": crashes.kills.total(),
        "left": dict(crashes.left),
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    faulthandler.enable()
    print(f"seed {seed}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as work:
        print(json.dumps(run(Path(work), kills=options.kills, seed=seed)))


if __name__ == "__main__":
    main()
