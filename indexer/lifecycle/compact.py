"""``compact_index``: rewrite an index without what was removed from it."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from llm2clip.indexer.ann.faiss_flat import import_faiss
from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.core.index_paths import generation_of
from llm2clip.indexer.core.results import CompactReport
from llm2clip.indexer.lifecycle.commit import Planner, commit
from llm2clip.indexer.search.verify import file_problems
from llm2clip.indexer.storage.items_file import count_all
from llm2clip.indexer.storage.items_reader import ItemsReader
from llm2clip.indexer.storage.manifest import DEFAULT_PLAN, MANIFEST, Manifest
from llm2clip.indexer.storage.transaction import Transaction, open_for_write
from llm2clip.indexer.storage.vector_segments import open_vectors


def compact_index(path: str | os.PathLike[str], *, planner: Planner | None = None) -> CompactReport:
    """Rewrite an index without removed vectors and rows, and with an ANN index over all of it.

    No image is read. Ids change. Running searches go on with the index as it was.

    Args:
        path: folder of the index.
        planner: chooses the ANN index; None: as before.

    Raises:
        IndexConflictError: another process writes.
        IndexDamagedError: the index is damaged.
        IndexWriteError: an I/O error occurred (for example a full disk); the index stays as it was.
    """
    folder, began = Path(path).expanduser().absolute(), time.perf_counter()
    notes: list[str] = []
    with open_for_write(folder) as manifest:
        before = _bytes(folder)
        if problems := [*file_problems(folder, manifest)]:
            raise IndexDamagedError(
                f"{problems[0]}: nothing was written. Repair it: llm2clip-index verify --repair"
            )
        if planner is None and _is_compact(folder, manifest):
            written = manifest
            notes.append("nothing to remove: the index is unchanged")
        else:
            written = _rewrite(folder, manifest, planner)
    return CompactReport(
        path=str(folder),
        items=written.items,
        dropped=manifest.rows - written.rows,
        segments=len(written.segments),
        bytes_before=before,
        bytes_after=_bytes(folder),
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
    )


def _is_compact(folder: Path, manifest: Manifest) -> bool:
    """Whether there is nothing to drop, and the ANN index covers every vector."""
    covered = manifest.ann is not None and manifest.ann.rows == manifest.rows
    if manifest.tombstones or not covered:
        return False
    return count_all(folder / manifest.items_file) == manifest.items


def _rewrite(folder: Path, manifest: Manifest, planner: Planner | None) -> Manifest:
    import_faiss()
    plan = manifest.ann.plan if manifest.ann else DEFAULT_PLAN
    empty = replace(
        manifest,
        generation=0,
        rows=0,
        items=0,
        bad=0,
        items_bytes=0,
        items_checksum=f"{0:016x}",
        segments=(),
        ann=None,
        files={},
    )
    vectors = open_vectors(folder, manifest.segments, dim=manifest.dim)
    items = ItemsReader.of(folder, manifest)
    with closing(items), Transaction.create(folder, empty) as transaction:
        for rows in items.each():
            transaction.copy(rows, vectors.take(np.array([row.id for row in rows])))
        transaction.add_exclusions(items.errors(every=True))
        return commit(transaction, folder, planner=planner, plan=plan)


def _bytes(folder: Path) -> int:
    names = (name for name in os.listdir(folder) if name == MANIFEST or generation_of(name) is not None)
    return sum((folder / name).lstat().st_size for name in names)
