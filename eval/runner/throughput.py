"""What an encoder costs: speed at both ends, memory and size, under one stated condition.

Recall without this column compares a language model of 8 billion parameters with one of a tenth of a billion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """How to measure."""

    rounds: int = 3
    """Repeats; the median counts."""
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128)
    """Batches to try; the best counts."""
    clock: Callable[[], float] = time.perf_counter
    """Seconds from some moment on."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an encoder costs on this machine."""

    images_per_second: float
    """From encoded bytes to vectors, at the best batch."""
    image_batch: int
    """Which batch that was."""
    captions_per_second: float
    """Texts of the given lengths to vectors, at the best batch."""
    caption_batch: int
    """Which batch that was."""
    query_p50_ms: float
    """Median time of a text alone."""
    query_p95_ms: float
    """The time that 95 % of texts alone stay below (nearest rank)."""
    peak_memory_mb: float | None
    """Most memory of the process while encoding, in millions of bytes; ``None`` where the system does not tell."""
    parameters: int
    """Trained numbers of both sides."""
    dim: int
    """Length of its vectors."""
    vector_bytes: int
    """Bytes of a vector in an index, in half precision."""
    threads: int
    """Threads of the arithmetic."""

    def per_million_queries(self, price_per_hour: float) -> float:
        """Price of a million queries in the best batch, at the price of this machine for an hour."""
        return price_per_hour / 3600 / self.captions_per_second * 1e6


def measure_cost(
    encoder: Encoder,
    *,
    images: Sequence[bytes],
    texts: Sequence[str],
    options: CostOptions | None = None,
) -> Cost:
    """Time both sides of an encoder; nothing else should be running.

    Args:
        encoder: Loaded, on its device.
        images: Encoded images, as many as the largest batch at least for a fair rate.
        texts: Queries of the length that is asked about.
        options: Repeats and batches.

    Raises:
        ValueError: If there is no image or no text.
    """
    if not images or not texts:
        raise ValueError(f"got {len(images)} images and {len(texts)} texts, expected at least one of each")
    how = options or CostOptions()
    tell_peak = _watch_memory()
    encoder.encode_images(list(images[:1]))  # the first call pays for lazy set-up
    encoder.encode_texts(list(texts[:1]))
    image_rate, image_batch = _best_rate(
        lambda size: encoder.encode_images(list(images), batch_size=size), len(images), how
    )
    caption_rate, caption_batch = _best_rate(
        lambda size: encoder.encode_texts(list(texts), batch_size=size), len(texts), how
    )
    alone = [
        1000 * _seconds(lambda text=text: encoder.encode_texts([text]), how)  # type: ignore[misc]
        for _ in range(how.rounds)
        for text in texts
    ]
    return Cost(
        images_per_second=image_rate,
        image_batch=image_batch,
        captions_per_second=caption_rate,
        caption_batch=caption_batch,
        query_p50_ms=float(np.median(alone)),
        query_p95_ms=float(np.percentile(alone, 95, method="inverted_cdf")),
        peak_memory_mb=tell_peak(),
        parameters=encoder.info.parameters,
        dim=encoder.info.dim,
        vector_bytes=2 * encoder.info.dim,
        threads=_threads(),
    )


def _best_rate(encode: Callable[[int], object], count: int, how: CostOptions) -> tuple[float, int]:
    rates = {}
    for size in how.batch_sizes:
        times = [_seconds(lambda size=size: encode(size), how) for _ in range(how.rounds)]  # type: ignore[misc]
        rates[size] = count / max(float(np.median(times)), 1e-9)
        if size >= count:  # larger batches are the same one
            break
    best = max(rates, key=lambda size: rates[size])
    return rates[best], best


def _seconds(call: Callable[[], object], how: CostOptions) -> float:
    began = how.clock()
    call()
    return how.clock() - began


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _watch_memory() -> Callable[[], float | None]:
    """Begin to watch the memory of this process; the returned call tells the peak since, where Linux does."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")
        status.read_text()
    except OSError:
        return lambda: None

    def peak() -> float | None:
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), None)

    return peak
