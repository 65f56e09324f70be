"""``repair_index``: repair a damaged index from its own files, without reading an image or loading an encoder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np

from llm2clip.common.files import counted, file_sha256, sync_folder
from llm2clip.indexer.ann.faiss_flat import FaissIndex
from llm2clip.indexer.core.errors import FaissNotInstalledError, IndexDamagedError, IndexerError
from llm2clip.indexer.core.results import Report
from llm2clip.indexer.lifecycle.commit import commit
from llm2clip.indexer.search.verify import file_problems
from llm2clip.indexer.storage.index_folder import next_generation, settle_items
from llm2clip.indexer.storage.items_file import connect_for_writing, sqlite
from llm2clip.indexer.storage.items_reader import ItemsReader
from llm2clip.indexer.storage.items_writer import (
    MODULUS,
    ItemsWriter,
    committed_sum,
    is_intact,
    lifetime_checksum,
    sum_errors,
)
from llm2clip.indexer.storage.lock import lock
from llm2clip.indexer.storage.manifest import KIND, FileRecord, Manifest, Segment, read_manifest
from llm2clip.indexer.storage.transaction import Transaction, roll_back
from llm2clip.indexer.storage.vector_segments import SegmentWriter

_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class RepairReport(Report):
    """What ``repair_index`` found and did."""

    repaired: tuple[str, ...]
    """What was repaired, one sentence each."""
    lost: int
    """Images whose vectors or items could not be restored: they are no longer in the index."""


def repair_index(path: str | os.PathLike[str]) -> RepairReport:
    """Repair what can be repaired in a damaged index.

    Vectors are restored from the exact FAISS index if there is one, and the ANN index is rebuilt from the vectors.
    Images whose vectors or items are lost are removed; ``update`` embeds them again.
    """
    folder, began = Path(path).expanduser().absolute(), time.perf_counter()
    manifest = read_manifest(folder)
    with lock(folder):
        settle_items(folder)
        manifest = read_manifest(folder)
        done: list[str] = []
        _repair_items(folder, manifest, done)
        roll_back(folder, manifest)
        lost = _repair_generations(folder, manifest, done)
        wrong = {problem.partition(" ")[0] for problem in file_problems(folder, manifest)}
        gone = [each for each in manifest.segments if each.file in wrong]
        gone = [each for each in gone if not _restored(folder, manifest, each, wrong, done)]
        altered, orphans, differs = _altered_items(folder, manifest, done)
        lost += altered
        lost += [id for each in gone for id in range(each.first_id, each.first_id + each.rows)]
        if manifest.ann is not None and (manifest.ann.file in wrong or gone):
            done.append(f"{manifest.ann.file} was rebuilt from the vectors")
            manifest = replace(manifest, ann=None)
        taken = 0
        if gone or lost or orphans or differs or (manifest.ann is None and manifest.rows):
            manifest, taken = _commit(folder, manifest, gone, lost, orphans, done)
    return RepairReport(
        path=str(folder),
        repaired=tuple(done),
        lost=taken,
        items=manifest.items,
        seconds=time.perf_counter() - began,
    )


def _unrepairable(folder: Path, manifest: Manifest, problem: str) -> IndexDamagedError:
    return IndexDamagedError(
        f"{manifest.items_file} cannot be repaired ({problem}): rebuild the index with  llm2clip-index build "
        f"{quote(manifest.corpus['spec'])} --index {quote(str(folder))} --overwrite"
    )


def _repair_items(folder: Path, manifest: Manifest, done: list[str]) -> None:
    """Rebuild the database indexes of the items, where they are all that is wrong."""
    path = folder / manifest.items_file
    try:
        items = ItemsReader(path, generation=manifest.generation)
    except IndexDamagedError as error:
        raise _unrepairable(folder, manifest, str(error)) from error
    with closing(items):
        damage = items.damage()
    if damage is None:
        return
    try:
        with closing(connect_for_writing(path)) as db, sqlite(path):
            db.execute("REINDEX")
            damage = str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])
    except (IndexerError, OSError) as error:
        raise _unrepairable(folder, manifest, str(error)) from error
    if damage != "ok":
        raise _unrepairable(folder, manifest, damage)
    done.append(f"the database indexes of {manifest.items_file} were rebuilt")


def _restored(folder: Path, manifest: Manifest, segment: Segment, wrong: set[str], done: list[str]) -> bool:
    """Whether the file of a segment could be restored, bit for bit, from the exact FAISS index."""
    ann = manifest.ann
    if ann is None or ann.plan.get("kind") != KIND or ann.file in wrong:
        return False
    if segment.first_id + segment.rows > ann.rows:
        return False
    draft = SegmentWriter(folder, generation=next_generation(folder), dim=manifest.dim)
    with suppress(IndexDamagedError, FaissNotInstalledError):
        exact = FaissIndex.read(folder / ann.file, rows=ann.rows, dim=manifest.dim)
        with draft:
            for start in range(segment.first_id, segment.first_id + segment.rows, _AT_ONCE):
                count = min(_AT_ONCE, segment.first_id + segment.rows - start)
                draft.append(exact.rows(start, count).astype(np.float16))
        if file_sha256(folder / draft.name(0), regular=True) == manifest.files[segment.file].sha256:
            os.replace(folder / draft.name(0), folder / segment.file)
            sync_folder(folder)
            done.append(f"{segment.file} was restored from {ann.file}")
            return True
    (folder / draft.name(0)).unlink(missing_ok=True)
    return False


def _repair_generations(folder: Path, manifest: Manifest, done: list[str]) -> list[int]:
    """Restore generations that there cannot be; ids of the items of which that is not known, which are there now."""
    with closing(ItemsWriter(folder / manifest.items_file, generation=manifest.generation)) as items:
        repaired, unknown = items.repair_generations(rows=manifest.rows)
        repaired += items.repair_errors(sources=len(manifest.sources))
        if repaired:
            done.append(
                f"{counted(repaired, 'row')} of {manifest.items_file} restored or deleted, as there cannot be such"
            )
    return unknown


def _altered_items(folder: Path, manifest: Manifest, done: list[str]) -> tuple[list[int], list[int], bool]:
    """Ids of items whose rows were altered, ids without any row, and whether the others are not those committed."""
    seen, count, total, lifetimes = np.zeros(manifest.rows, dtype=np.bool_), 0, 0, 0
    altered: list[int] = []
    with closing(ItemsReader.of(folder, manifest)) as items:
        for row in items.stored():
            id, is_there = row.item.id, row.removed > manifest.generation
            lifetimes += lifetime_checksum(id, row.added, row.removed)
            if not is_intact(row.item, row.checksum) or not 0 <= id < manifest.rows:
                if is_there or row.item.hash:
                    altered.append(id)
                continue
            seen[id] = True
            count, total = count + is_there, total + is_there * row.checksum
        sums = {"generations": ("lifetimes", lifetimes % MODULUS)}
        sums["images that could not be read"] = "errors", items.read_with(sum_errors)
        known = {
            name: committed_sum(items.meta, name, generation=manifest.generation) for name, _ in sums.values()
        }
        bad = items.count_bad()
    renewed = [what for what, (name, found) in sums.items() if found != int(known[name] or f"{found:x}", 16)]
    done += [f"the checksum of the {what} in {manifest.items_file} was renewed" for what in renewed]
    seen[[id for id in altered if 0 <= id < manifest.rows]] = True
    committed = manifest.items, int(manifest.items_checksum, 16), manifest.bad
    differs = bool(renewed) or (count, total % MODULUS, bad) != committed
    return altered, np.flatnonzero(~seen).tolist(), differs


def _commit(
    folder: Path,
    manifest: Manifest,
    gone: Sequence[Segment],
    lost: Sequence[int],
    orphans: Sequence[int],
    done: list[str],
) -> tuple[Manifest, int]:
    before = read_manifest(folder)
    plan = before.ann
    manifest = _replaced(folder, manifest, gone, next_generation(folder))
    with Transaction.begin(folder, manifest) as transaction:
        transaction.remove(lost)
        transaction.clear_hashes(lost)
        transaction.add_tombstones(orphans)
        transaction.recount()
        taken = max(0, before.items - transaction.items)
        done += [f"{each.file} is lost, with {each.rows:,} vectors" for each in gone]
        if taken:
            done.append(f"{counted(taken, 'image')} removed")
        return commit(transaction, folder, plan=plan.plan if plan else None, cover_all=True), taken


def _replaced(folder: Path, manifest: Manifest, gone: Sequence[Segment], generation: int) -> Manifest:
    """The manifest with files of placeholder vectors in place of those that are lost."""
    segments, files = list(manifest.segments), dict(manifest.files)
    for number, segment in enumerate(segments):
        if segment not in gone:
            continue
        writer = SegmentWriter(folder, generation=generation, dim=manifest.dim, begin=number)
        row = np.eye(1, manifest.dim, dtype=np.float16)
        with writer:
            for start in range(0, segment.rows, _AT_ONCE):
                writer.append(np.repeat(row, min(_AT_ONCE, segment.rows - start), axis=0))
        name = writer.name(0)
        segments[number] = replace(segment, file=name)
        files.pop(segment.file)
        files[name] = FileRecord.of(folder / name)
    return replace(manifest, segments=tuple(segments), files=files)
