"""``Index.verify``: does an index hold what was committed?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llm2clip.indexer.earlier import sha256_of
from llm2clip.indexer.errors import FaissNotInstalledError, IndexDamagedError
from llm2clip.indexer.faiss_index import FaissIndex

if TYPE_CHECKING:
    from llm2clip.indexer.search import Index

NORM_SLACK = 2e-3
"""How far rounding to float16 can take a unit row's length from 1, with room to spare."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What ``verify`` found."""

    path: str
    """The index."""
    items: int
    """Pictures it says it has."""
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
    """Check checksums, counts, ids, vectors, and that the FAISS index has the same vectors. Reads everything."""
    notes: list[str] = []
    problems = [*_files(index)]
    try:
        problems += [*_items(index), *_vectors(index)]
        problems += _faiss(index)
    except IndexDamagedError as error:
        problems.append(str(error))
    except FaissNotInstalledError as error:
        notes.append(f"the FAISS index was not compared: {error}")
    return VerifyReport(
        path=str(index.path),
        items=len(index),
        files=len(index.manifest.files) + 1,
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
    )


def _files(index: Index) -> Iterator[str]:
    for name, record in index.manifest.files.items():
        try:
            if sha256_of(index.path / name) != record.sha256:
                yield f"{name} was altered: its checksum does not fit"
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror or error}"


def _items(index: Index) -> Iterator[str]:
    manifest, items = index.manifest, index.items
    if damage := items.damage():
        yield f"{manifest.items_file}: {damage}"
    rows = sum(segment.rows for segment in manifest.segments)
    counts = {"the manifest": manifest.items, manifest.items_file: items.count(), "the segments": rows}
    if len(set(counts.values())) > 1:
        yield "numbers of pictures differ: " + ", ".join(f"{n:,} in {where}" for where, n in counts.items())
    if (bad := items.count_bad()) != manifest.bad:
        yield f"numbers of bad pictures differ: {manifest.bad:,} in the manifest, {bad:,} in {manifest.items_file}"


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


def _faiss(index: Index) -> Iterator[str]:
    manifest = index.manifest
    derived = FaissIndex.read(index.path / manifest.faiss_file, rows=len(index.vectors), dim=manifest.dim)
    for first, rows in index.vectors.blocks():
        if not np.array_equal(derived.rows(first, len(rows)), rows.astype(np.float32), equal_nan=True):
            yield f"{manifest.faiss_file} has other vectors than the segments, from about id {first}"
            return
