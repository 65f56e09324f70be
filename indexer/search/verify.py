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
from llm2clip.indexer.storage.items_file import number_in
from llm2clip.indexer.storage.items_reader import ItemsReader, StoredRow
from llm2clip.indexer.storage.items_schema import NEVER
from llm2clip.indexer.storage.items_writer import (
    MODULUS,
    committed_sum,
    is_intact,
    lifetime_checksum,
    sum_errors,
)
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
            if file_sha256(folder / name, regular=True) != record.sha256:
                yield f"{name} was altered: its checksum does not fit"
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror or error}"


def _items(index: OpenIndex) -> Iterator[str]:
    manifest, items = index.manifest, index.items
    if damage := items.damage():
        yield f"{manifest.items_file} is damaged: {damage}"
        return
    found = _Items()
    for row in items.stored():
        found.add(row, manifest)
    # Read afterwards: a writer may have begun meanwhile, whose removals are of its generation.
    meta = items.read_meta()
    known, errors = (
        committed_sum(meta, name, generation=manifest.generation) for name in ("lifetimes", "errors")
    )
    if found.altered is not None:
        yield f"{manifest.items_file} was altered: the checksum of {found.altered!r} does not fit"
    yield from found.wrong
    if found.count != manifest.items:
        yield f"numbers of images differ: {manifest.items:,} in the manifest, {found.count:,} in {manifest.items_file}"
    elif found.total % MODULUS != int(manifest.items_checksum, 16):
        yield f"{manifest.items_file} has other images than those committed"
    elif known is not None and found.lifetimes % MODULUS != int(known, 16):
        yield f"{manifest.items_file} was altered: generations of items are not those committed"
    found.ends.update(items.last_end_of_errors())
    if found.ends and max(found.ends) > number_in(meta, "writing", path=items.path):
        yield f"{manifest.items_file} has an item removed in generation {max(found.ends)}, which there cannot be"
    if (bad := items.count_bad()) != manifest.bad:
        yield f"numbers of bad images differ: {manifest.bad:,} in the manifest, {bad:,} in {manifest.items_file}"
    elif errors is not None and items.read_with(sum_errors) != int(errors, 16):
        yield f"{manifest.items_file} was altered: the images that could not be read are not those committed"
    if len(items.dead(rows=manifest.rows)) != manifest.tombstones:
        yield f"{manifest.items_file} does not list the {manifest.tombstones:,} vectors without an image"


class _Items:
    """What all rows of the items file give."""

    def __init__(self) -> None:
        self.count = self.total = self.lifetimes = 0
        self.altered: str | None = None
        """The first key whose row does not have its checksum."""
        self.wrong: list[str] = []
        """The first item out of place, as a sentence."""
        self.ends = set[int]()
        """Generations to come in which items are removed."""
        self._last = -1

    def add(self, row: StoredRow, manifest: Manifest) -> None:
        """Take in the next row by id."""
        item, now = row.item, manifest.generation
        is_there = row.removed > now
        if not is_intact(item, row.checksum) and (is_there or item.hash):  # of others the hash may be cleared
            self.altered = self.altered if self.altered is not None else str(item.key)
        ended = row.removed if row.removed <= now else NEVER
        self.lifetimes += lifetime_checksum(item.id, row.added, ended)
        if now < row.removed < NEVER:
            self.ends.add(row.removed)
        if not 0 <= item.id < manifest.rows or (is_there and item.id == self._last):
            self.wrong = self.wrong or [
                f"{manifest.items_file} has item {item.id} out of order, or without a vector"
            ]
        if is_there:
            self._last = item.id
            self.count += 1
            self.total += row.checksum


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
