"""Verifies that an index holds what was committed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from llm2clip.common.files import file_sha256
from llm2clip.indexer.ann.index_file import ann_problem
from llm2clip.indexer.core.errors import FaissNotInstalledError, IndexDamagedError
from llm2clip.indexer.storage.items_reader import ItemsReader
from llm2clip.indexer.storage.items_writer import MODULUS, row_checksum
from llm2clip.indexer.storage.manifest import Manifest
from llm2clip.indexer.storage.vector_segments import Vectors

NORM_SLACK = 2e-3
"""Largest deviation of the norm of a stored unit row, with some margin for rounding to float16."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Result of verifying an index."""

    path: str
    items: int
    """Images according to its manifest."""
    files: int
    problems: tuple[str, ...]
    """One sentence per problem; empty if there is none."""
    notes: tuple[str, ...]
    """What could not be checked, and why."""

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


class OpenIndex(Protocol):
    """What is verified of an open index."""

    path: Path
    manifest: Manifest
    items: ItemsReader
    vectors: Vectors


def verify_index(index: OpenIndex) -> VerifyReport:
    """Check checksums, counts, ids and vectors, and that the ANN index has the same vectors. Reads everything."""
    notes: list[str] = []
    problems = [*file_problems(index.path, index.manifest)]
    try:
        problems += [*_items(index), *_vectors(index)]
        problems += _ann(index)
    except IndexDamagedError as error:
        problems.append(str(error))
    except FaissNotInstalledError as error:
        notes.append(f"the ANN index was not compared: {error}")
    return VerifyReport(
        path=str(index.path),
        items=index.manifest.items,
        files=len(index.manifest.files) + 2,
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
    )


def file_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """One sentence per altered or missing file among those that never change; begins with the file name."""
    for name, record in manifest.files.items():
        try:
            if file_sha256(folder / name) != record.sha256:
                yield f"{name} was altered: its checksum does not fit"
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror or error}"


def _items(index: OpenIndex) -> Iterator[str]:
    manifest, items = index.manifest, index.items
    if damage := items.damage():
        yield f"{manifest.items_file} is damaged: {damage}"
        return
    count = total = 0
    last, altered = -1, ""
    for row, checksum in items.checked():
        count, total = count + 1, total + checksum
        if row_checksum(row) != checksum:
            altered = altered or row.key
        if not last < row.id < manifest.rows:
            yield f"{manifest.items_file} has item {row.id} out of order, or without a vector"
        last = row.id
    if altered:
        yield f"{manifest.items_file} was altered: the checksum of {altered!r} does not fit"
    if count != manifest.items:
        yield f"numbers of images differ: {manifest.items:,} in the manifest, {count:,} in {manifest.items_file}"
    elif total % MODULUS != int(manifest.items_checksum, 16):
        yield f"{manifest.items_file} has other images than those committed"
    if (bad := items.count_bad()) != manifest.bad:
        yield f"numbers of bad images differ: {manifest.bad:,} in the manifest, {bad:,} in {manifest.items_file}"
    if len(items.dead(rows=manifest.rows)) != manifest.tombstones:
        yield f"{manifest.items_file} does not list the {manifest.tombstones:,} vectors without an image"


def _vectors(index: OpenIndex) -> Iterator[str]:
    off, first_off = 0, -1
    for first, rows in index.vectors.blocks():
        norms = np.linalg.norm(rows.astype(np.float32), axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_SLACK))
        if len(wrong) and not off:
            first_off = first + int(wrong[0])
        off += len(wrong)
    if off:
        yield f"{off:,} vectors are not of unit length, the first with id {first_off}"


def _ann(index: OpenIndex) -> Iterator[str]:
    ann = index.manifest.ann
    if ann is not None:
        problem = ann_problem(index.path / ann.file, index.vectors, rows=ann.rows, plan=ann.plan)
        if problem is not None:
            yield problem
