"""``remove_images``: remove images from an index by key, by pattern, or by filter."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.core.index_paths import root_of
from llm2clip.indexer.core.results import ChangeReport
from llm2clip.indexer.lifecycle.commit import commit
from llm2clip.indexer.lifecycle.sync import LISTED, SyncResult
from llm2clip.indexer.records.sidecars import composed
from llm2clip.indexer.storage.items_reader import ErrorRow, ItemsReader
from llm2clip.indexer.storage.manifest import Manifest
from llm2clip.indexer.storage.transaction import Transaction, open_for_write


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images to remove: those that any of these names."""

    keys: Sequence[str] = ()
    """Keys, or the paths that hits show."""
    matching: str | None = None
    """A pattern of keys: ``*`` stands for anything, ``?`` for one character."""
    where: str | None = None
    """A filter in the language of docs/filters.md."""


def remove_images(
    path: str | os.PathLike[str], selection: Selection, *, dry_run: bool = False
) -> ChangeReport:
    """Remove images from an index; no update adds them again, ``add_images`` does.

    Args:
        path: folder of the index.
        selection: which.
        dry_run: only report what would be removed.

    Raises:
        IndexerError: a key is not in the index, or nothing was selected.
        WhereError: the filter is not valid.
        IndexConflictError: another process writes.
        IndexWriteError: an I/O error occurred (for example a full disk).
    """
    folder, began = Path(path).expanduser().absolute(), time.perf_counter()
    if not (selection.keys or selection.matching or selection.where):
        raise IndexerError(
            "no images were selected: name keys, a pattern with --matching, or a filter with --where"
        )
    with open_for_write(folder) as manifest:
        chosen = _chosen(folder, manifest, selection)
        result = SyncResult(manifest=manifest, unchanged=manifest.items - len(chosen), began=began)
        result.removed_keys = [row.key for row in islice(chosen.values(), LISTED)]
        if not chosen:
            result.notes.append("no image matches: nothing was removed")
        if not chosen or dry_run:
            result.removed = len(chosen)
            return result.report(folder)
        with Transaction.begin(folder, manifest) as transaction:
            result.removed = transaction.remove(sorted(chosen))
            transaction.add_exclusions(chosen.values())
            result.manifest = commit(transaction, folder)
        result.add(transaction)
        return result.report(folder)


remove_pictures = remove_images
"""Its old name."""


def _chosen(folder: Path, manifest: Manifest, selection: Selection) -> dict[int, ErrorRow]:
    """Ids of the images that are selected, with the rows that keep them out."""
    keys = dict.fromkeys(selection.keys, False)
    allowed = _filtered(folder, manifest, selection.where) if selection.where else None
    roots = [root_of(source) for source in manifest.sources]
    chosen: dict[int, ErrorRow] = {}
    nearby: dict[str, tuple[int, ErrorRow]] = {}
    paths = {composed(os.path.abspath(os.path.expanduser(key))): key for key in keys}
    paths.update({composed(key): key for key in keys})
    with closing(ItemsReader.of(folder, manifest)) as items:
        for id, source, key, size, mtime_ns in chain.from_iterable(
            items.pages("id, source, key, size, mtime_ns")
        ):
            wanted = bool(allowed is not None and allowed[id])
            path = f"{roots[source]}{os.sep}{key}"
            for name in (key, path):
                if name in keys:
                    keys[name] = wanted = True
            row = ErrorRow(source, key, "removed", "removed by hand", size, mtime_ns)
            if wanted or (selection.matching and fnmatchcase(key, selection.matching)):
                chosen[id] = row
            for name in (composed(path), composed(key)):
                if name in paths:
                    nearby[paths[name]] = (id, row)
    for name, (id, row) in nearby.items():
        if not keys[
            name
        ]:  # the path of an image relative to the current folder, or its name typed in another form
            keys[name], chosen[id] = True, row
    if missing := [key for key, found in keys.items() if not found]:
        more = f", and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise IndexerError(
            f"not in the index: {', '.join(missing[:3])}{more}. Nothing was removed: expected keys or paths as search "
            "shows them, or use --matching '*part*'"
        )
    return chosen


def _filtered(folder: Path, manifest: Manifest, where: str) -> NDArray[np.bool_]:
    from llm2clip.indexer.search.index import Index

    with Index(folder, manifest) as index:
        allowed = index.allowed(where)
    assert allowed is not None
    return allowed
