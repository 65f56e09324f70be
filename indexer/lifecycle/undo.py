"""``undo_change``: bring back what the last change of an index took away, without an encoder."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.core.results import Report
from llm2clip.indexer.lifecycle.commit import commit
from llm2clip.indexer.storage.index_folder import check_files
from llm2clip.indexer.storage.transaction import Transaction, open_for_write, sources_before


@dataclass(frozen=True, kw_only=True)
class UndoReport(Report):
    """What ``undo_change`` did."""

    back: tuple[str, ...]
    """Keys of the images that are in the index again, or again as they were."""
    gone: tuple[str, ...]
    """Keys of the images that the last change had added or described anew."""
    sources: tuple[str, ...]
    """The sources now, as their folders or files."""


def undo_change(path: str | os.PathLike[str]) -> UndoReport:
    """Undo the last ``add``, ``update``, ``remove``, ``move`` or build of an index that existed; again: redo it.

    Vectors stay in the index until ``compact``, so nothing is encoded. Files are not touched: an update after an undo
    sees the images as they are.

    Args:
        path: folder of the index.

    Raises:
        IndexerError: the last change was the first build, an overwriting build or ``compact``.
        IndexConflictError: another process writes.
        IndexDamagedError: the index is damaged.
        IndexWriteError: an I/O error occurred (for example a full disk).
    """
    folder, began = Path(path).expanduser().absolute(), time.perf_counter()
    with open_for_write(folder) as found:
        base = check_files(folder, found)
        sources = sources_before(folder / base.items_file, base.generation)
        if sources is None:
            raise IndexerError(
                f"nothing to undo in {folder}: its last change built or compacted it as a whole. "
                "Nothing was changed"
            )
        base = replace(base, sources=sources)
        with Transaction.begin(folder, base) as transaction:
            back, gone = transaction.revert()
            if not transaction.items:
                raise IndexerError(f"before its last change {folder} had no images: nothing was changed")
            manifest = commit(transaction, folder)
    return UndoReport(
        path=str(folder),
        items=manifest.items,
        back=tuple(back),
        gone=tuple(gone),
        sources=tuple(str(source.get("root") or source["spec"]) for source in manifest.sources),
        seconds=time.perf_counter() - began,
    )
