"""Whether images may be encoded in quicker arithmetic: only where the vectors stay nearly as they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.ingest.jpeg_draft import PARITY, some_pixels
from llm2clip.indexer.records.record import Record

ENOUGH = 1024
"""Fewer images than this are not worth loading the weights a second time."""
_QUICKER = 1.1
_TURNS = 2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial of quicker arithmetic found."""

    encoder: ImageEncoder
    """The one to use."""
    taken: bool
    """Whether it is the quicker one."""
    cosine: float = 1.0
    """The smallest cosine between the vectors of both."""
    times: float = 1.0
    """How many times as fast it is."""
    probes: int = 0
    """Images that were tried."""

    def text(self) -> str:
        """One line for people."""
        numbers = f"{self.times:.1f} times as fast, smallest cosine {self.cosine:.5f} of {self.probes} images"
        return f"encoded in {'' if self.taken else 'full precision, not in '}quicker arithmetic: {numbers}"


def try_quicker(
    encoder: ImageEncoder,
    quicker: Callable[[], ImageEncoder],
    records: Iterable[Record],
    *,
    parity: float = PARITY,
    clock: Callable[[], float] = time.perf_counter,
) -> Trial:
    """Encode some images both ways, and take the quicker encoder if all vectors stay and time is won.

    Args:
        encoder: the encoder in full precision.
        quicker: gives the same encoder in other arithmetic.
        records: the images to come; the first few thousand are drawn from.
        parity: cosine that every vector must keep.
        clock: seconds from some moment on.
    """
    pixels = some_pixels(records, encoder=encoder)
    if not len(pixels):
        return Trial(encoder=encoder, taken=False)
    other = quicker()
    full, seconds = _encoded(encoder, pixels, clock)
    rows, took = _encoded(other, pixels, clock)
    cosine = float(np.einsum("nd,nd->n", full.astype(np.float64), rows).min())
    times = seconds / max(took, 1e-9)
    taken = cosine >= parity and times >= _QUICKER
    return Trial(
        encoder=other if taken else encoder,
        taken=taken,
        cosine=min(cosine, 1.0),
        times=times,
        probes=len(pixels),
    )


def _encoded(
    encoder: ImageEncoder, pixels: NDArray[np.uint8], clock: Callable[[], float]
) -> tuple[NDArray[np.float32], float]:
    """Vectors, and the seconds of the fastest of a few passes, one more being for loading the weights."""
    rows, times = encoder.encode_prepared(pixels), []
    for _ in range(_TURNS):
        began = clock()
        encoder.encode_prepared(pixels)
        times.append(clock() - began)
    return rows, min(times)
