"""What nano costs: time per query, images per second, size."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm2clip.eval.datasets.tar_images import TarImage
from llm2clip.eval.nano_report.measures import Measurement

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

_ROUNDS = 3
_IMAGES = 512
_BATCH = 64


@contextmanager
def _threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_cost(
    encoder: Encoder, *, queries: Sequence[str], captions: Sequence[str], images: Sequence[TarImage]
) -> Iterator[Measurement]:
    """Time queries one by one on one thread, long captions likewise, and images on all processors.

    Images are timed twice: from encoded bytes to vectors, which is what a build pays, and the network
    alone on prepared pixels. Each time is the median over a few rounds; nothing else should be running.
    """
    with _threads(1):
        yield _latency(encoder, queries, row="query")
        if captions:
            yield _latency(encoder, captions, row="long caption")
    content = [image.read() for image in images[:_IMAGES]]
    pixels = np.stack([encoder.prepare(one).pixels for one in content])
    with _threads(os.cpu_count() or 1):
        whole = _median_time(lambda: encoder.encode_images(content, batch_size=_BATCH))
        network = _median_time(
            lambda: [encoder.encode_prepared(pixels[n : n + _BATCH]) for n in range(0, len(pixels), _BATCH)]
        )
    for row, seconds in (("images, from files", whole), ("images, network alone", network)):
        yield Measurement(
            table="cost",
            subject="speed",
            row=row,
            metric="rate",
            value=len(content) / seconds,
            unit="1/s",
            count=len(content),
        )


def measure_size(encoder: Encoder, folder: Path | None) -> Iterator[Measurement]:
    """Count parameters and the bytes of the files in an encoder's folder (1 MB = 1,000,000 bytes)."""
    yield _size("parameters", encoder.info.parameters / 1e6, "million")
    for name, row in (("model.safetensors", "weights"), ("tokenizer.json", "tokenizer")):
        if folder is not None and (folder / name).is_file():
            yield _size(row, (folder / name).stat().st_size / 1e6, "MB")


def _size(row: str, value: float, unit: str) -> Measurement:
    return Measurement(table="cost", subject="size", row=row, metric="size", value=value, unit=unit)


def _latency(encoder: Encoder, texts: Sequence[str], *, row: str) -> Measurement:
    encoder.encode_texts(texts[:1])  # the first call pays for lazy set-up
    times = []
    for _ in range(_ROUNDS):
        for text in texts:
            start = time.perf_counter()
            encoder.encode_texts([text])
            times.append(1000 * (time.perf_counter() - start))
    return Measurement(
        table="cost",
        subject="speed",
        row=row,
        metric="median",
        value=statistics.median(times),
        unit="ms",
        count=len(times),
    )


def _median_time(job: Callable[[], object]) -> float:
    job()
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
