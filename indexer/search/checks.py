"""What is checked before a search: the files of an index, and the queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import regular_size
from llm2clip.indexer.core.errors import IndexDamagedError, IndexerError
from llm2clip.indexer.core.searchable import Described
from llm2clip.indexer.storage.manifest import MANIFEST


def checked_queries(vectors: NDArray[np.float32], index: Described) -> NDArray[np.float32]:
    """The queries of a search. Shape: (n, dim), float32.

    Raises:
        IndexerError: they have another shape than those of the index, or are no unit rows.
    """
    queries = np.ascontiguousarray(vectors, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != index.dim:
        raise IndexerError(
            f"queries must have the shape (n, {index.dim}), got {queries.shape}: this index was built "
            f"with encoder '{index.encoder['name']}'"
        )
    squares = np.einsum("nd,nd->n", queries, queries)
    low, high = (float(squares.min()), float(squares.max())) if len(squares) else (1.0, 1.0)
    if not (low > 0.98 and high < 1.02):  # also true if one is NaN
        raise IndexerError(
            f"queries must be finite rows of length 1, got lengths {low**0.5:.4g} to {high**0.5:.4g}: "
            "divide each by its length"
        )
    return queries


def stamp_of(folder: Path) -> object:
    """What changes with every commit; None if there is no manifest."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def check_size(path: Path, expected: int, *, or_more: bool = False) -> None:
    """Refuse a file that is missing or has another size; larger ones are right with ``or_more``."""
    try:
        size = regular_size(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise IndexDamagedError(
            f"{path} {'is missing' if missing else f'is damaged: {error.strerror}'}: the index is incomplete. "
            "Try  llm2clip-index verify --repair, or run the build command again"
        ) from error
    if size < expected or (size > expected and not or_more):
        raise IndexDamagedError(
            f"{path} is damaged: got {size:,} bytes, expected {expected:,}. "
            "Try  llm2clip-index verify --repair, or run the build command again"
        )
