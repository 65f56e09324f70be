"""Pixels in, vectors out: the encoder runs over batches of prepared images, and its promises are checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.encoder_protocol import EncoderIdentity, ImageEncoder
from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.ingest.batching import AdaptiveBatchSize
from llm2clip.indexer.ingest.decode_pipeline import CHUNK
from llm2clip.indexer.storage.outcome import Outcome, reason_of


def embedded(
    outcomes: Iterable[Outcome], *, encoder: ImageEncoder, batches: AdaptiveBatchSize, works: bool = False
) -> Iterator[list[Outcome]]:
    """Run the encoder over prepared images, a batch at a time; outcomes stay in order.

    Images that it refuses are outcomes with a reason, once it has shown that it can encode any, which it may have
    done before (``works``).

    Raises:
        IndexerError: the encoder does not keep its promises.
        ValueError: the encoder refuses all images of the first batch.
    """
    pending: list[Outcome] = []
    waiting = 0
    for outcome in outcomes:
        pending.append(outcome)
        waiting += outcome.pixels is not None
        if waiting >= batches.size or len(pending) >= CHUNK + 4 * batches.size:
            works = _settle(pending, encoder, batches, works=works)
            yield pending
            pending, waiting = [], 0
    if pending:
        _settle(pending, encoder, batches, works=works)
        yield pending


def _settle(
    pending: list[Outcome], encoder: ImageEncoder, batches: AdaptiveBatchSize, *, works: bool
) -> bool:
    """Encode what waits; returns whether the encoder, with these weights, has ever given a vector."""
    works = works or _any_vector(pending)  # those of an earlier build are its own too
    waiting = [each for each in pending if each.pixels is not None]
    with batches if len(waiting) == batches.size else nullcontext():
        fitted = _fitted(waiting, encoder, works)
    if not fitted:
        batches.halve()
    return works or _any_vector(pending)


def _fitted(waiting: list[Outcome], encoder: ImageEncoder, works: bool) -> bool:
    """Encode, in halves where the whole needs more memory than there is; returns whether the whole did not."""
    try:
        _encode(waiting, encoder, works)
        return True
    except (RuntimeError, MemoryError) as error:
        if len(waiting) < 2 or not _out_of_memory(error):
            raise
    middle = len(waiting) // 2
    _fitted(waiting[:middle], encoder, works)
    _fitted(waiting[middle:], encoder, works or _any_vector(waiting[:middle]))
    return False


def _out_of_memory(error: Exception) -> bool:
    # What PyTorch says of CUDA, and of its allocator for processors.
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        part in text for part in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _any_vector(outcomes: list[Outcome]) -> bool:
    return any(outcome.vector is not None for outcome in outcomes)


def _encode(outcomes: list[Outcome], encoder: ImageEncoder, works: bool) -> None:
    pixels = [outcome.pixels for outcome in outcomes if outcome.pixels is not None]
    if not pixels:
        return
    try:
        batch = np.stack(pixels) if len({image.shape for image in pixels}) == 1 else pixels
        rows = np.asarray(encoder.encode_prepared(batch), dtype=np.float32)
    except ValueError as error:
        if len(outcomes) == 1:
            outcomes[0].pixels, outcomes[0].stage, outcomes[0].reason = None, "encode", reason_of(error)
            return
        for outcome in outcomes:  # one image must not take the others of its batch with it
            _encode([outcome], encoder, works)
        if not works and not _any_vector(outcomes):
            raise  # it is not the images
        return
    _check_rows(rows, len(pixels), encoder.info)
    for outcome, row in zip(outcomes, rows, strict=True):
        outcome.pixels, outcome.vector = None, row.astype(np.float16)


def _check_rows(rows: NDArray[np.float32], count: int, info: EncoderIdentity) -> None:
    if rows.shape != (count, info.dim):
        raise IndexerError(
            f"encoder '{info.name}' gave vectors of shape {rows.shape} for {count} images, expected "
            f"{(count, info.dim)}: this is a fault of the encoder"
        )
    norms = np.linalg.norm(rows, axis=1)
    if not np.all(np.abs(norms - 1) < 0.01):
        raise IndexerError(
            f"encoder '{info.name}' gave vectors of lengths {norms.min():.4g} to {norms.max():.4g}, expected 1: "
            "this is a fault of the encoder"
        )
