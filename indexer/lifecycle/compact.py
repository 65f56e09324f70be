"""``compact_index``: an index without what was removed from it, in new files; and repairing one that lost some."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from llm2clip.indexer.ann import index_file
from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.core.results import CompactReport
from llm2clip.indexer.planner.build_ann import write_ann
from llm2clip.indexer.search.verify import file_problems
from llm2clip.indexer.storage.generation_writer import GenerationWriter, Planner, closing_writer
from llm2clip.indexer.storage.index_folder import generation_of, items_name, next_generation
from llm2clip.indexer.storage.items_reader import ItemsReader, query
from llm2clip.indexer.storage.items_writer import ItemsWriter
from llm2clip.indexer.storage.manifest import DEFAULT_PLAN, MANIFEST, Manifest
from llm2clip.indexer.storage.provenance import BuildInfo, empty_manifest
from llm2clip.indexer.storage.transaction import open_for_write
from llm2clip.indexer.storage.vector_segments import Vectors, map_segment


def compact_index(path: str | os.PathLike[str], *, planner: Planner | None = None) -> CompactReport:
    """Write an index anew without the vectors and rows that were removed, and with a search structure over all of it.

    No image is read. Ids change. Searches that are running go on with the index as it was.

    Args:
        path: folder of the index.
        planner: chooses the search structure; None: that of before.

    Raises:
        IndexConflictError: another process writes.
        IndexDamagedError: the index is damaged.
        IndexWriteError: the disk is full, or worse; the index stays as it was.
    """
    folder, began = Path(path).expanduser().absolute(), time.perf_counter()
    notes: list[str] = []
    with open_for_write(folder) as manifest:
        before = _bytes(folder)
        if problems := [*file_problems(folder, manifest)]:
            raise IndexDamagedError(
                f"{problems[0]}: nothing was written. Repair it: llm2clip-index verify --repair"
            )
        if planner is None and _tidy(folder, manifest):
            written = manifest
            notes.append("nothing to drop: the index was left as it is")
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


def _tidy(folder: Path, manifest: Manifest) -> bool:
    """Whether there is nothing that compacting would drop, or cover."""
    covered = manifest.ann is not None and manifest.ann.rows == manifest.rows
    if manifest.tombstones or not covered:
        return False
    items = "(SELECT count(*) FROM items) - ?"
    left = query(
        folder / manifest.items_file, f"SELECT {items} + (SELECT count(*) FROM unfinished)", manifest.items
    )
    return not left[0][0]


def _rewrite(folder: Path, manifest: Manifest, planner: Planner | None) -> Manifest:
    index_file.ready(manifest.ann.plan if manifest.ann else DEFAULT_PLAN)
    dim = manifest.dim
    mapped = [map_segment(folder / each.file, rows=each.rows, dim=dim) for each in manifest.segments]
    vectors = Vectors(mapped, dim=dim)
    items = ItemsReader(folder / manifest.items_file, generation=manifest.generation)
    with closing(items), closing_writer(_fresh(folder, manifest)) as writer:
        for rows in items.each():
            writer.copy(rows, vectors.take(np.array([row.id for row in rows])))
        writer.keep_out(items.errors(every=True))
        old_plan = manifest.ann.plan if manifest.ann else DEFAULT_PLAN
        again = planner or (lambda path, vectors: write_ann(path, vectors, plan=old_plan))
        return writer.commit(planner=again, whole=True)


def _fresh(folder: Path, manifest: Manifest) -> GenerationWriter:
    """A writer of new files for an index that stays the same one."""
    generation = next_generation(folder)
    origin = BuildInfo(
        corpus=manifest.corpus,
        encoder=manifest.encoder,
        encoder_source=manifest.encoder_source,
        anew=False,
    )
    name = items_name(generation)
    upon = empty_manifest(origin, generation=0, items_file=name, index_id=manifest.index_id)
    meta = {"index_id": manifest.index_id, "anew": "false"}
    items = ItemsWriter(folder / name, generation=generation, meta=meta)
    upon = replace(upon, sources=manifest.sources)
    return GenerationWriter(folder, generation=generation, upon=upon, items=items)


def _bytes(folder: Path) -> int:
    names = (name for name in os.listdir(folder) if name == MANIFEST or generation_of(name) is not None)
    return sum(os.path.getsize(folder / name) for name in names)
