"""How much memory a build of very many images holds at once: ``python -m benchmarks.memory 1000000``.

The records are made up, their content is a number, and the encoder costs nothing. What is counted is the memory of
the process's own (on Linux, RssAnon), and all that is resident, which includes the pages of the vectors that were
written and are mapped while the search structure is made.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm2clip.encoders import FakeEncoder
from llm2clip.encoders.core.image_source import PreparedImage
from llm2clip.indexer import BuildOptions, Corpus, Record, build_index

DIM, SIDE = 512, 224


class Many(Corpus):
    """Records without end, of one file."""

    kind = "folder"

    def __init__(self, folder: Path, *, count: int) -> None:
        super().__init__(str(folder), folder)
        self._file = folder / "one.bin"
        self._count = count

    def _list(self) -> Iterator[Record]:
        for number in range(self._count):
            key = f"{number // 1000:06d}/{number:09d}.jpg"
            yield Record(
                key=key,
                uri=str(self._file),
                file=self._file,
                size=100,
                fetch=partial(int.to_bytes, number, 100, "big"),  # no two are copies
                mtime_ns=1,
                caption=f"image number {number}",
                metadata={"number": number},
            )

    def explain_empty(self) -> str:
        return "no records were asked for"


class Nothing:
    """An encoder that decodes to real amounts of pixels and costs nothing."""

    def __init__(self) -> None:
        self.info = FakeEncoder(dim=DIM, image_size=SIDE).info
        rows = np.random.default_rng(0).standard_normal((4096, DIM)).astype(np.float32)
        self._rows: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def prepare(self, image: bytes, /, *, draft: bool = False) -> PreparedImage:
        return PreparedImage(pixels=np.empty((SIDE, SIDE, 3), np.uint8), width=SIDE, height=SIDE)

    def encode_prepared(
        self, pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], /
    ) -> NDArray[np.float32]:
        return self._rows[: len(pixels)]


class Resident:
    """The peaks of this process's memory in bytes, looked at every few hundredths of a second."""

    def __init__(self) -> None:
        self.own = self.all = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def look(self) -> tuple[int, int]:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        own, everything = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))
        self.own, self.all = max(self.own, own), max(self.all, everything)
        return own, everything

    def _watch(self) -> None:
        while not self._done.wait(0.03):
            self.look()

    def __enter__(self) -> Resident:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()


def measure(count: int, work: Path) -> dict[str, float]:
    """Build an index of so many records; what was held, in bytes, and how long it took."""
    work.mkdir(exist_ok=True)
    (work / "one.bin").write_bytes(b"x" * 100)
    corpus = Many(work, count=count)
    began = time.perf_counter()
    with Resident() as resident:
        before, _ = resident.look()
        report = build_index(corpus, work / "index", encoder=Nothing(), options=BuildOptions())
    assert report.items == count
    vectors = sum(file.stat().st_size for file in (work / "index").glob("vectors-*.npy"))
    return {
        "records": count,
        "seconds": round(time.perf_counter() - began, 1),
        "own_before": before,
        "own_peak": resident.own,
        "resident_peak": resident.all,
        "vectors": vectors,
        "index": sum(file.stat().st_size for file in (work / "index").iterdir()),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="llm2clip-memory-") as folder:
        for number in sys.argv[1:]:
            print(json.dumps(measure(int(number), Path(folder) / number)), flush=True)
