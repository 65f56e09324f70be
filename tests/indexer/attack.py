"""Attacks on indexes, bounded in time: damaged and hostile folders, failing writes, kills, mutated inputs.

    python -m tests.indexer.attack --minutes 10

Every attempt runs in a batch of its own process, so that a crash or an endless loop is seen and counted. Ends with
status 1 if anything crashed, hung, ended in a traceback, or changed a file outside its index. A new kind of input is a
function in ``ATTACKS``: it takes a folder to work in and a random generator, and yields what came of each attempt.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index, open_index

from ..encoders.mutated_folders import hostile_encoders
from .faults import concurrent_readers, failing_exports, failing_steps, power_losses
from .hostile import alter_items, alter_manifest, operations, tree
from .material import numbered, put
from .mutating import mutated, set_odd

SLOWEST = 10
"""Seconds that one attempt may take."""
_PATIENCE = 60
"""Seconds after which an attempt is ended."""
_BATCH = 50
FINE = frozenset(["answered", "refused"])
"""All that may come of an attempt."""


def small_index(work: Path) -> tuple[Path, Path]:
    """An index with captions, and its images; made once in a folder."""
    photos, index = work / "photos", work / "made"
    if not index.exists():
        put(photos, numbered(range(12)))
        for number in range(12):
            (photos / f"{number:03d}.txt").write_text(f"caption {number}")
        put(photos, {"bad.png": b"no image", "worse.png": b"\x89PNG"})
        build_index(photos, index, encoder=FakeEncoder())
    fresh = work / "now" / "i"
    shutil.rmtree(work / "now", ignore_errors=True)
    shutil.copytree(index, fresh)
    return fresh, photos


def attempt(index: Path, photos: Path, name: str) -> str:
    """Run an operation on an index; anything but an answer or an error of one line is a finding."""
    try:
        operations(index, photos)[name]()
    except (ValueError, OSError) as error:
        return "refused" if "\n" not in str(error) else f"{name}: several lines: {error}"
    except Exception as error:
        return f"{name}: traceback {type(error).__name__}: {error}"
    return "answered"


def mutated_file(work: Path, rng: random.Random) -> Iterator[str]:
    """A file of the index is changed at random; half of the time the manifest has its new size."""
    index, photos = small_index(work)
    file = rng.choice([path for path in sorted(index.iterdir()) if path.name not in ("lock", "writer")])
    file.write_bytes(mutated(file.read_bytes(), rng.randbytes(500), rng))
    if rng.random() < 0.5 and file.name != "manifest.json":
        size = file.stat().st_size
        alter_manifest(
            index,
            lambda content: (
                content["files"][file.name].update(bytes=size)
                if file.name in content["files"]
                else content.update(items_bytes=size)
            ),
        )
    yield attempt(index, photos, rng.choice(list(operations(index, photos))))


def odd_manifest(work: Path, rng: random.Random) -> Iterator[str]:
    """An entry of the manifest, at any depth, is replaced by a value of any type, under the right checksum."""
    index, photos = small_index(work)
    alter_manifest(index, lambda content: set_odd(content, rng))
    yield attempt(index, photos, rng.choice(list(operations(index, photos))))


def odd_items(work: Path, rng: random.Random) -> Iterator[str]:
    """A column of some rows of the items is set to a value of any type."""
    index, photos = small_index(work)
    table = rng.choice(["items", "items", "items", "errors", "meta"])
    columns = {
        "items": "id added removed source key path locator size mtime_ns sidecars hash width caption metadata checksum",
        "errors": "source key stage reason size mtime_ns added removed",
        "meta": "value",
    }
    column = rng.choice(columns[table].split())
    values = ["x'ff'", "CAST(x'ff41' AS TEXT)", "'x'", "-1", "1 << 40", "1e300", "''", "zeroblob(100000)"]
    values += ["'[1]'", f"{column} + 1", "replace(hex(zeroblob(40000)), '0', '[')", "'../../x'"]
    value = rng.choice(values)
    try:
        alter_items(index, f"UPDATE OR IGNORE {table} SET {column} = {value} WHERE random() % 3 = 0")
    except Exception:
        return  # SQLite does not store it
    yield attempt(index, photos, rng.choice(list(operations(index, photos))))


def failing_writes(work: Path, rng: random.Random) -> Iterator[str]:
    """Files may not grow beyond some size, or no more files may be opened: as on a full disk. The next run mends it."""
    index, photos = small_index(work)
    put(photos, numbered(range(12, 16)))
    name = rng.choice(["update", "build", "compact", "remove", "export", "repair"])
    which, limit = rng.choice(
        [(resource.RLIMIT_FSIZE, rng.randrange(0, 60_000)), (resource.RLIMIT_NOFILE, rng.randrange(8, 40))]
    )
    before = resource.getrlimit(which)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(which, (limit, before[1]))
    try:
        found = attempt(index, photos, name)
    finally:
        resource.setrlimit(which, before)
    if found in FINE:
        with open_index(index) as opened:
            if problems := opened.verify().problems:
                found = f"{name}: damaged: {problems[0]}"
    yield found
    again = attempt(index, photos, "update")
    yield again if again == "answered" else f"{name}: then update {again}"


ATTACKS: dict[str, Callable[[Path, random.Random], Iterator[str]]] = {
    "mutated files": mutated_file,
    "odd manifests": odd_manifest,
    "odd items": odd_items,
    "failing writes": failing_writes,
    "failing steps": failing_steps,
    "failing exports": failing_exports,
    "power losses": power_losses,
    "hostile encoders": hostile_encoders,
    "answers to concurrent readers": concurrent_readers,
}


def batch(what: str, count: int, seed: int) -> Counter[str]:
    """Some attempts in this process; a file changed outside the index is a finding."""
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "outside").mkdir()
        (work / "outside" / "victim").write_text("precious")
        before = tree(work / "outside")
        os.environ["LLM2CLIP_HOME"] = str(work / "home")
        for number in range(count):
            signal.alarm(_PATIENCE)
            began = time.process_time()
            for outcome in ATTACKS[what](work, random.Random(seed + number)):
                found[outcome] += 1
                if time.process_time() - began > SLOWEST:
                    found[f"hang: {outcome}"] += 1
                signal.alarm(_PATIENCE)
                began = time.process_time()
            if tree(work / "outside") != before:
                found["write outside"] += 1
    return found


def run(what: str, seconds: float, *, seed: int) -> Counter[str]:
    """Batches of an attack until the time is over."""
    found, end = Counter[str](), time.monotonic() + seconds
    while time.monotonic() < end:
        seed += _BATCH
        command = [sys.executable, "-m", "tests.indexer.attack", "--batch", what, str(_BATCH), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = " ".join(done.stderr.strip().splitlines()[-1:])
            kind = "hang" if done.returncode == -signal.SIGALRM else f"crash {done.returncode}"
            found[f"{kind}: seed {seed}: {last}"] += 1
            continue
        found.update(json.loads(done.stdout))
    return found


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all attacks together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        what, count, seed = options.batch
        print(json.dumps(batch(what, int(count), int(seed))))
        return 0
    share, bad = options.minutes * 60 / (len(ATTACKS) + 2), 0
    for what in ATTACKS:
        found = run(what, share, seed=options.seed)
        wrong = sum(number for outcome, number in found.items() if outcome not in FINE)
        bad += wrong
        print(f"{found.total():,} {what}: {wrong} wrong;", dict(found.most_common(8)), flush=True)
    here = Path(__file__).parent
    for script, *arguments in (
        ["mutating.py", "--images", f"{int(20 * share)}", "--containers", f"{int(3 * share)}"],
        ["crashing.py", "--kills", f"{max(5, int(share / 2))}"],
    ):
        done = subprocess.run(
            [sys.executable, here / script, *arguments, "--seed", str(options.seed)], check=False
        )
        bad += done.returncode != 0
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
