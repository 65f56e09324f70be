"""What the benchmarks share: settings, rows of the report, and statistics."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure with."""

    encoder: str = "nano"
    """Encoder name or folder."""
    corpus: str = "sample:"
    """Images to index."""
    work: Path
    """Folder for indexes; deleted afterwards."""
    processor_time: bool = False
    """Measure processor time instead of wall time: says something on a busy machine too."""
    llm2vec: str | None = None
    """Interpreter of an environment with llm2vec to compare with, or ``"install"`` to make one."""
    quick: bool = False
    """Small sizes and few repeats: to see that it runs, not to report."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds from some moment on."""
        return process_time if self.processor_time else perf_counter

    def times(self, full: int) -> int:
        """How often to repeat something that is repeated ``full`` times in a full run."""
        return max(2, full // 20) if self.quick else full


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the report."""

    benchmark: str
    """Which of the benchmarks."""
    what: str
    """What was measured."""
    value: float
    """The number."""
    unit: str
    """Its unit; ``ratio`` for a quotient of two measured numbers."""
    aim: float | None = None
    """What it should be, if we said so beforehand."""
    better: Literal["higher", "lower"] = "lower"
    """Which side of the aim is good."""
    note: str = ""
    """How it was measured, where that is not obvious."""

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; ``None`` where there is none."""
        if self.aim is None:
            return None
        return self.value >= self.aim if self.better == "higher" else self.value <= self.aim


def quick_corpus(corpus: str, folder: Path, *, images: int = 48) -> str:
    """The first images of a corpus as a folder of files, for a quick run."""
    from llm2clip.indexer import open_corpus

    folder.mkdir()
    for number, record in enumerate(islice(open_corpus(corpus).records(), images)):
        (folder / f"{number:04d}{Path(record.key).suffix}").write_bytes(record.read())
    return str(folder)


def seconds(call: Callable[[], object], *, times: int, clock: Callable[[], float]) -> list[float]:
    """How long each of several calls took, after one that is not counted."""
    call()
    measured = []
    for _ in range(times):
        began = clock()
        call()
        measured.append(clock() - began)
    return measured


def _memory(name: str) -> float:
    """A line of this process' status, in MB: ``VmRSS`` or ``VmHWM``. NaN where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith(name))


def peak_beyond(call: Callable[[], object]) -> float:
    """How much the most memory during a call lies above that before it, in MB."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is not there for this one
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        return float("nan")
    before = _memory("VmRSS")
    call()
    return _memory("VmHWM") - before


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of the others lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def machine() -> dict[str, object]:
    """Where and with what it was measured."""
    packages = ("torch", "numpy", "faiss-cpu", "faiss-gpu", "tokenizers", "pillow", "llm2clip-retrieval")
    return {
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
    }


def _commit() -> str | None:
    """The commit of the checkout, with a plus sign where files differ from it."""
    here = Path(__file__).parent
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True
        )
    except OSError:
        return None
    return name.stdout.strip() + ("+" if changed.stdout else "") or None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
