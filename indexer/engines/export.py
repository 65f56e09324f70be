"""``export_to_engine``: an index written to another engine, or what changed of it since."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.core.address import Address
from llm2clip.indexer.core.errors import IndexConflictError, IndexerError
from llm2clip.indexer.core.results import Progress
from llm2clip.indexer.engines.opening import open_table
from llm2clip.indexer.engines.remote_index import retried
from llm2clip.indexer.engines.rows import rows_of
from llm2clip.indexer.engines.table import Description, EngineError, Table
from llm2clip.indexer.planner.tune import K, sample_queries
from llm2clip.indexer.search.index import Index, open_index
from llm2clip.indexer.storage.manifest import encoder_mismatch

RECALL = 0.99
"""Default target recall@10."""
_VERIFIED = 1_000
_QUERIES = 200
_EFFORTS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)


@dataclass(frozen=True, kw_only=True)
class EngineExport:
    """What ``export_to_engine`` did."""

    address: str
    items: int
    """Images in the table now."""
    sent: int
    """Of them, those that were written: new or changed."""
    deleted: int
    dim: int
    kind: str
    """Type of the ANN index in the engine; ``exact``: none."""
    effort: int
    recall: float
    """Recall@10 that was measured; 1 for an exact search."""
    write_seconds: float
    index_seconds: float
    """Building and tuning the ANN index."""


def export_to_engine(
    path: str | os.PathLike[str],
    address: Address,
    *,
    sync: bool = False,
    recall: float = RECALL,
    on_progress: Callable[[Progress], None] | None = None,
) -> EngineExport:
    """Write an index to a table of another engine.

    A first export goes to a draft that nobody sees, and continues one that was interrupted. Rows are compared by
    digests, so only what is new or changed is sent. Counts and 1,000 images are read back before anything is published.

    Args:
        path: folder of the index.
        address: the table.
        sync: bring an existing table of this index up to date; a missing one is written.
        recall: target recall@10 of the ANN index, which is tuned by queries; 1: none is built.
        on_progress: is called as images are written.

    Raises:
        IndexConflictError: the table exists and ``sync`` is false, or it is of another index.
        EngineError: the engine cannot be reached, refuses something, or returns something else than was written.
    """
    if not 0 < recall <= 1:
        raise IndexerError(f"the recall must be above 0 and at most 1, got {recall:g}")
    with open_index(path) as index:
        if not len(index):
            raise IndexerError(f"{index.path} has no image to export")
        table = open_table(address)
        try:
            return _export(index, table, sync=sync, recall=recall, on_progress=on_progress)
        finally:
            table.close()


def _export(
    index: Index, table: Table, *, sync: bool, recall: float, on_progress: Callable[[Progress], None] | None
) -> EngineExport:
    manifest = index.manifest
    wanted = Description(
        index_id=manifest.index_id,
        generation=manifest.generation,
        dim=manifest.dim,
        items=len(index),
        rows=manifest.rows,
        encoder=dict(manifest.encoder),
        encoder_source=manifest.encoder_source,
        sources=[dict(source) for source in manifest.sources],
    )
    existing = retried(table, table.description)
    if existing is not None:
        _require_same(index, table.address, existing, sync=sync)
        wanted = replace(
            wanted,
            kind=existing.kind,
            parameters=existing.parameters,
            effort=existing.effort,
            recall=existing.recall,
        )
    out = table if existing is not None else retried(table, lambda: table.draft(wanted))
    try:
        begun = time.perf_counter()
        retried(out, out.begin)
        sent, deleted = _write(index, out, on_progress=on_progress)
        _verify(index, out)
        written = time.perf_counter()
        if existing is None or sent > len(index) // 10:
            wanted = _with_ann(index, out, wanted, recall=recall)
        out.publish(wanted)
    finally:
        if out is not table:
            out.close()
    return EngineExport(
        address=str(table.address),
        items=len(index),
        sent=sent,
        deleted=deleted,
        dim=manifest.dim,
        kind=wanted.kind,
        effort=wanted.effort,
        recall=wanted.recall,
        write_seconds=written - begun,
        index_seconds=time.perf_counter() - written,
    )


def _require_same(index: Index, address: Address, existing: Description, *, sync: bool) -> None:
    """Refuse a table that is not of this index, or that was not to be changed."""
    if existing.index_id != index.manifest.index_id or encoder_mismatch(
        existing.encoder, index.manifest.encoder
    ):
        raise IndexConflictError(
            f"{address} holds another index, of encoder '{existing.encoder.get('name')}': "
            "choose another name, or drop it in the engine"
        )
    if not sync:
        raise IndexConflictError(f"{address} already exists: bring it up to date with  --sync")


def _write(index: Index, out: Table, *, on_progress: Callable[[Progress], None] | None) -> tuple[int, int]:
    """Send the rows whose digest the table lacks and delete those that the index lacks; how many of each."""
    stored = np.array(retried(out, lambda: list(out.select(("id", "digest")))), dtype=np.int64).reshape(-1, 2)
    known = dict(zip(stored[:, 0].tolist(), stored[:, 1].tolist(), strict=True))
    sent = done = 0
    for rows in rows_of(index, at_once=out.batch):
        missing = [row for row in rows if known.pop(row.id, None) != row.digest]
        if missing:
            retried(out, lambda missing=missing: out.upsert(missing))  # type: ignore[misc]
        sent, done = sent + len(missing), done + len(rows)
        if on_progress is not None:
            on_progress(Progress(stage="writing", done=done, total=len(index)))
    gone = list(known)
    for start in range(0, len(gone), out.batch):
        retried(out, lambda start=start: out.delete(gone[start : start + out.batch]))  # type: ignore[misc]
    return sent, len(gone)


def _verify(index: Index, out: Table) -> None:
    """Compare the number of rows, and some of them, with the index."""
    if (count := retried(out, out.count)) != len(index):
        raise EngineError(
            f"{out.address} has {count:,} rows after {len(index):,} were written: nothing was published"
        )
    random = np.random.default_rng(len(index))
    allowed = index.allowed()
    ids = np.arange(index.manifest.rows) if allowed is None else np.flatnonzero(allowed)
    chosen = np.sort(random.choice(ids, min(_VERIFIED, len(ids)), replace=False)).tolist()
    found = retried(out, lambda: out.fetch(chosen))
    vectors = index.take(chosen)
    for id, vector in zip(chosen, vectors, strict=True):
        if id not in found or not np.array_equal(found[id].vector, vector):
            raise EngineError(
                f"{out.address} returns another vector of image {id} than was written: nothing was published"
            )


def _with_ann(index: Index, out: Table, wanted: Description, *, recall: float) -> Description:
    """Build an ANN index and choose the least effort that reaches the recall."""
    if recall >= 1:
        return replace(wanted, kind="exact", parameters={}, effort=0, recall=1.0)
    made = out.build(wanted)
    if not made.effort:
        return made
    queries = sample_queries(index.vectors, None).queries[:_QUERIES]
    exact = KnnSearcher(index.vectors).search(queries, k=K, allowed=index.allowed())
    truth = [{id for id, _ in hits} for hits in exact]
    for effort in _EFFORTS:
        reached = _recall(out, queries, truth, effort=effort)
        if reached >= recall:
            break
    return replace(made, effort=effort, recall=reached)


def _recall(out: Table, queries: NDArray[np.float32], truth: list[set[int]], *, effort: int) -> float:
    found = retried(out, lambda: out.nearest(queries, k=K, where=None, effort=effort))
    shares = [
        len(right & {row.id for row in rows}) / len(right) for right, rows in zip(truth, found, strict=True)
    ]
    return float(np.mean(shares))
