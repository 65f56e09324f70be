"""What an encoder costs: images and texts per second, time of a query, memory; from a run, or timed on purpose."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm2clip.eval.results.records import CostRecord, Result

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.eval.runner.embedding_cache import Spent

_ROUNDS = 3
_TIMED = 64
"""Items below which the rate of a run says nothing."""


@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """How to time."""

    rounds: int = _ROUNDS
    """Repeats; the median counts."""
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128)
    """Batches to try; the best counts."""
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Speed of an encoder on this machine."""

    images_per_second: float
    """From encoded bytes to vectors, at the best batch size."""
    image_batch: int
    texts_per_second: float
    text_batch: int
    query_p50_ms: float
    query_p95_ms: float
    """95th percentile of it (nearest rank)."""
    peak_memory_mb: int
    """Peak memory of the process while encoding, in millions of bytes; see :func:`peak_memory_mb`."""
    threads: int


def measure_throughput(
    encoder: Encoder, *, images: Sequence[bytes], texts: Sequence[str], options: TimingOptions | None = None
) -> Throughput:
    """Time both towers of an encoder; nothing else should be running."""
    if not images or not texts:
        raise ValueError(f"got {len(images)} images and {len(texts)} texts, expected at least one of each")
    how = options or TimingOptions()
    reset_peak_memory()
    encoder.encode_images(list(images[:1]))  # the first call pays for lazy set-up
    encoder.encode_texts(list(texts[:1]))
    image_rate, image_batch = _best_rate(
        lambda size: encoder.encode_images(list(images), batch_size=size), len(images), how
    )
    text_rate, text_batch = _best_rate(
        lambda size: encoder.encode_texts(list(texts), batch_size=size), len(texts), how
    )
    times = 1000 * np.array(query_times(encoder, texts, options=how))
    return Throughput(
        images_per_second=image_rate,
        image_batch=image_batch,
        texts_per_second=text_rate,
        text_batch=text_batch,
        query_p50_ms=float(np.median(times)),
        query_p95_ms=float(np.percentile(times, 95, method="inverted_cdf")),
        peak_memory_mb=peak_memory_mb(),
        threads=_threads(),
    )


def query_times(
    encoder: Encoder, texts: Sequence[str], *, options: TimingOptions | None = None
) -> list[float]:
    """Seconds of encoding each text alone, in every round, after one call that is not counted."""
    how = options or TimingOptions()
    encoder.encode_texts(list(texts[:1]))
    return [
        _seconds(lambda text=text: encoder.encode_texts([text]), how)  # type: ignore[misc]
        for _ in range(how.rounds)
        for text in texts
    ]


def _best_rate(encode: Callable[[int], object], count: int, how: TimingOptions) -> tuple[float, int]:
    rates = {}
    for size in how.batch_sizes:
        times = [_seconds(lambda size=size: encode(size), how) for _ in range(how.rounds)]  # type: ignore[misc]
        rates[size] = count / max(float(np.median(times)), 1e-9)
        if size >= count:  # larger batches are the same one
            break
    best = max(rates, key=lambda size: rates[size])
    return rates[best], best


def _seconds(call: Callable[[], object], how: TimingOptions) -> float:
    began = how.clock()
    call()
    return how.clock() - began


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def peak_memory_mb() -> int:
    """Peak memory of this process since :func:`reset_peak_memory`, in millions of bytes."""
    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return round(peak / 1e6)


def reset_peak_memory() -> None:
    """Reset the peak memory of this process, where the system can (Linux), as between two encoders."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run_cost(images: Spent, texts: Spent, timed: Throughput | None = None) -> CostRecord:
    """What encoding cost in a run; rates as timed on purpose, if they were."""

    def rate(spent: Spent) -> float | None:
        return spent.encoded / spent.seconds if spent.encoded >= _TIMED and spent.seconds > 0 else None

    return CostRecord(
        images_encoded=images.encoded,
        texts_encoded=texts.encoded,
        images_per_second=timed.images_per_second if timed else rate(images),
        texts_per_second=timed.texts_per_second if timed else rate(texts),
        query_ms=timed.query_p50_ms if timed else None,
        peak_memory_mb=peak_memory_mb(),
        threads=_threads(),
    )


def keep_cost(result: Result, earlier: Result | None) -> Result:
    """A result whose vectors came from disk keeps what encoding them cost when they were made, on the same machine."""
    cost, old = result.cost, earlier.cost if earlier else None
    if earlier is None or old is None or cost is None:
        return result
    if (earlier.encoder.key, earlier.machine) != (result.encoder.key, result.machine):
        return result
    if old.threads != cost.threads and (cost.images_encoded or cost.texts_encoded or cost.query_ms):
        return result
    new = bool(cost.images_encoded or cost.texts_encoded or cost.query_ms)
    kept = replace(
        cost,
        images_per_second=cost.images_per_second or old.images_per_second,
        texts_per_second=cost.texts_per_second or old.texts_per_second,
        query_ms=cost.query_ms or old.query_ms,
        peak_memory_mb=max(cost.peak_memory_mb, old.peak_memory_mb) if new else old.peak_memory_mb,
        threads=cost.threads if new else old.threads,
    )
    return replace(result, cost=kept)
