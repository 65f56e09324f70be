"""Records in, vectors out: threads read and decode while the caller's thread runs the encoder.

Everything is in order and bounded: at most a window of pictures is in memory, whatever the corpus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.earlier import Earlier, Kept
from llm2clip.indexer.errors import IndexerError
from llm2clip.indexer.items import ErrorRow
from llm2clip.indexer.records import Record, content_hash
from llm2clip.indexer.seam import EncoderIdentity, ImageEncoder
from llm2clip.indexer.segments import Rows

CHUNK = 512
"""Records that are looked up together in an earlier build, and written together at most."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of a record."""

    record: Record
    pixels: NDArray[np.uint8] | None = None
    """Decoded and waiting for the encoder. Shape: (size, size, 3)."""
    vector: Rows | None = None
    """Its vector. Shape: (dim,), float16."""
    kept: bool = False
    """Whether the vector, or the failure, is that of an earlier build."""
    id: int | None = None
    """The id that it has and keeps, where it had one; None: a new one."""
    hash: bytes = b""
    """Hash of its content."""
    width: int = 0
    """As shown, in pixels."""
    height: int = 0
    """As shown, in pixels."""
    stage: str = ""
    """Where it failed: list, read, decode, encode."""
    reason: str | None = None
    """Why it failed; None if it did not."""


def prepared(
    records: Iterable[Record], *, encoder: ImageEncoder, earlier: list[Earlier], workers: int, window: int
) -> Iterator[Outcome]:
    """Read and decode records in threads, in order, at most ``window`` ahead.

    Args:
        records: what to read.
        encoder: its ``prepare`` decodes.
        earlier: builds whose vectors are taken over, the first that has one.
        workers: number of threads.
        window: how many pictures may be read or waiting at once.
    """
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")
    queue: deque[Future[Outcome] | Outcome] = deque()
    try:
        for settled in _looked_up(records, earlier):
            queue.append(
                pool.submit(_prepare, settled, encoder, earlier) if isinstance(settled, Record) else settled
            )
            if len(queue) >= window:
                yield _result(queue.popleft())
        while queue:
            yield _result(queue.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _result(waiting: Future[Outcome] | Outcome) -> Outcome:
    return waiting if isinstance(waiting, Outcome) else waiting.result()


def _looked_up(records: Iterable[Record], earlier: list[Earlier]) -> Iterator[Record | Outcome]:
    for chunk in chunks(records):
        answers: list[Kept | ErrorRow | None] = [None] * len(chunk)
        for source in earlier:
            missing = [number for number, answer in enumerate(answers) if answer is None]
            for number, answer in zip(missing, source.kept([chunk[n] for n in missing]), strict=True):
                answers[number] = answer
        for record, answer in zip(chunk, answers, strict=True):
            yield _settled(record, answer)


def chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in lists of ``CHUNK``."""
    iterator = iter(records)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _settled(record: Record, answer: Kept | ErrorRow | None) -> Record | Outcome:
    if record.problem is not None:
        return Outcome(record=record, stage="list", reason=record.problem)
    if answer is None:
        return record
    if isinstance(answer, ErrorRow):
        return Outcome(record=record, kept=True, stage=answer.stage, reason=answer.reason)
    return _settled_as(record, answer)


def _settled_as(record: Record, answer: Kept) -> Outcome:
    return Outcome(
        record=record,
        kept=True,
        vector=answer.vector,
        id=answer.id,
        hash=answer.hash,
        width=answer.width,
        height=answer.height,
    )


def _prepare(record: Record, encoder: ImageEncoder, earlier: list[Earlier]) -> Outcome:
    try:
        content = record.read()
    except (OSError, ValueError) as error:
        return Outcome(record=record, stage="read", reason=_reason(error))
    if not content:
        return Outcome(record=record, stage="decode", reason="the file is empty")
    hash = content_hash(content)
    for source in earlier:
        if (known := source.by_hash(hash, key=record.key)) is not None:
            return _settled_as(record, known)
    try:
        picture = encoder.prepare(content)
    except (OSError, ValueError) as error:
        return Outcome(record=record, stage="decode", reason=_reason(error))
    except Exception as error:
        error.add_note(f"while decoding {record.uri}")
        raise
    return Outcome(
        record=record,
        pixels=picture.pixels,
        hash=hash,
        width=picture.width,
        height=picture.height,
    )


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def embedded(
    outcomes: Iterable[Outcome], *, encoder: ImageEncoder, batch_size: int, works: bool = False
) -> Iterator[list[Outcome]]:
    """Run the encoder over prepared pictures, ``batch_size`` at a time; outcomes stay in order.

    Pictures that it refuses are outcomes with a reason, once it has shown that it can encode any, which it may have
    done before (``works``).

    Raises:
        IndexerError: the encoder does not keep its promises.
        ValueError: the encoder refuses all pictures of the first batch.
    """
    pending: list[Outcome] = []
    waiting = 0
    for outcome in outcomes:
        pending.append(outcome)
        waiting += outcome.pixels is not None
        if waiting == batch_size or len(pending) >= CHUNK + 4 * batch_size:
            works = _settle(pending, encoder, works)
            yield pending
            pending, waiting = [], 0
    if pending:
        _settle(pending, encoder, works)
        yield pending


def _settle(pending: list[Outcome], encoder: ImageEncoder, works: bool) -> bool:
    """Encode what waits; returns whether the encoder, with these weights, has ever given a vector."""
    works = works or _any_vector(pending)  # those of an earlier build are its own too
    _encode([each for each in pending if each.pixels is not None], encoder, works)
    return works or _any_vector(pending)


def _any_vector(outcomes: list[Outcome]) -> bool:
    return any(outcome.vector is not None for outcome in outcomes)


def _encode(outcomes: list[Outcome], encoder: ImageEncoder, works: bool) -> None:
    pixels = [outcome.pixels for outcome in outcomes if outcome.pixels is not None]
    if not pixels:
        return
    try:
        rows = np.asarray(encoder.encode_prepared(np.stack(pixels)), dtype=np.float32)
    except ValueError as error:
        if len(outcomes) == 1:
            outcomes[0].pixels, outcomes[0].stage, outcomes[0].reason = None, "encode", _reason(error)
            return
        for outcome in outcomes:  # one picture must not take the others of its batch with it
            _encode([outcome], encoder, works)
        if not works and not _any_vector(outcomes):
            raise  # it is not the pictures
        return
    _check_rows(rows, len(pixels), encoder.info)
    for outcome, row in zip(outcomes, rows, strict=True):
        outcome.pixels, outcome.vector = None, row.astype(np.float16)


def _check_rows(rows: NDArray[np.float32], count: int, info: EncoderIdentity) -> None:
    if rows.shape != (count, info.dim):
        raise IndexerError(
            f"encoder '{info.name}' gave vectors of shape {rows.shape} for {count} pictures, expected "
            f"{(count, info.dim)}: this is a fault of the encoder"
        )
    norms = np.linalg.norm(rows, axis=1)
    if not np.all(np.abs(norms - 1) < 0.01):
        raise IndexerError(
            f"encoder '{info.name}' gave vectors of lengths {norms.min():.4g} to {norms.max():.4g}, expected 1: "
            "this is a fault of the encoder"
        )
