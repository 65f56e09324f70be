"""``Index.verify``: does an index hold what was committed?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm2clip.common.files import file_sha256
from llm2clip.indexer.ann.index_file import ann_problem
from llm2clip.indexer.core.errors import FaissNotInstalledError, IndexDamagedError
from llm2clip.indexer.storage.items_writer import MODULUS, row_checksum
from llm2clip.indexer.storage.manifest import Manifest

if TYPE_CHECKING:
    from llm2clip.indexer.search.index import Index

NORM_SLACK = 2e-3
"""How far rounding to float16 can take a unit row's length from 1, with room to spare."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What ``verify`` found."""

    path: str
    """The index."""
    items: int
    """Images it says it has."""
    files: int
    """Files that were checked."""
    problems: tuple[str, ...]
    """What is wrong, one sentence each; empty if all is well."""
    notes: tuple[str, ...]
    """What could not be checked, and why."""

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return not self.problems


def verify_index(index: Index) -> VerifyReport:
    """Check checksums, counts, ids, vectors, and that the search structure has the same vectors. Reads everything."""
    notes: list[str] = []
    problems = [*file_problems(index.path, index.manifest)]
    try:
        problems += [*_items(index), *_vectors(index)]
        problems += _ann(index)
    except IndexDamagedError as error:
        problems.append(str(error))
    except FaissNotInstalledError as error:
        notes.append(f"the search structure was not compared: {error}")
    return VerifyReport(
        path=str(index.path),
        items=len(index),
        files=len(index.manifest.files) + 2,
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
    )


def file_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the files that never change: (problem) for each, naming the file first."""
    for name, record in manifest.files.items():
        try:
            if file_sha256(folder / name) != record.sha256:
                yield f"{name} was altered: its checksum does not fit"
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror or error}"


def _items(index: Index) -> Iterator[str]:
    manifest, items = index.manifest, index.items
    if damage := items.damage():
        yield f"{manifest.items_file} is damaged: {damage}"
        return
    count = total = 0
    last, altered = -1, ""
    for rows in items.checked():
        for row, checksum in rows:
            count, total = count + 1, total + checksum
            if row_checksum(row) != checksum:
                altered = altered or row.key
            if not last < row.id < manifest.rows:
                yield f"{manifest.items_file} has an item of id {row.id} out of order, or of no vector"
            last = row.id
    if altered:
        yield f"{manifest.items_file} was altered: the checksum of {altered!r} does not fit"
    if count != manifest.items:
        yield f"numbers of images differ: {manifest.items:,} in the manifest, {count:,} in {manifest.items_file}"
    elif total % MODULUS != int(manifest.items_checksum, 16):
        yield f"{manifest.items_file} has other images than were committed"
    if (bad := items.count_bad()) != manifest.bad:
        yield f"numbers of bad images differ: {manifest.bad:,} in the manifest, {bad:,} in {manifest.items_file}"
    if len(items.dead(rows=manifest.rows)) != manifest.tombstones:
        yield f"{manifest.items_file} does not say which {manifest.tombstones:,} vectors are of no image"


def _vectors(index: Index) -> Iterator[str]:
    off, first_off = 0, -1
    for first, rows in index.vectors.blocks():
        norms = np.linalg.norm(rows.astype(np.float32), axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_SLACK))
        if len(wrong) and not off:
            first_off = first + int(wrong[0])
        off += len(wrong)
    if off:
        yield f"{off:,} vectors are not of unit length, the first with id {first_off}"


def _ann(index: Index) -> Iterator[str]:
    ann = index.manifest.ann
    if ann is not None:
        problem = ann_problem(index.path / ann.file, index.vectors, rows=ann.rows, plan=ann.plan)
        if problem is not None:
            yield problem
