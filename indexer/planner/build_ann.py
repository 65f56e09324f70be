"""Build the ANN index file of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import write_faiss
from llm2clip.indexer.ann.index_file import _known
from llm2clip.indexer.storage.manifest import KIND
from llm2clip.indexer.storage.vector_segments import Vectors


def covers_again(plan: Mapping[str, Any], *, covered: int, rows: int) -> bool:
    """Whether it is time to write the structure anew, now that ``rows - covered`` vectors are scanned beside it."""
    return rows - covered > max(20_000, covered // 4)


def write_ann(
    path: Path, vectors: Vectors, *, plan: Mapping[str, Any], queries: NDArray[np.float32] | None = None
) -> Mapping[str, Any]:
    """Write the structure of all ``vectors`` to ``path``.

    Args:
        path: the file to write.
        vectors: the stored rows.
        plan: what to make.
        queries: text queries to tune it with, None if there are none. Shape: (n, dim), float32, unit rows.

    Returns:
        The plan as it is to be kept: with what was found and measured.

    Raises:
        BudgetError: it would not fit into the memory that is free now.
        FaissNotInstalledError: FAISS is not installed.
        OSError: the disk is full, or worse.
    """
    if plan.get("kind") == KIND:
        write_faiss(path, vectors.blocks(), rows=len(vectors), dim=vectors.dim)
        return plan
    from llm2clip.indexer.planner.plan_index import make_ann, renewed

    return make_ann(
        path, vectors, plan=renewed(_known(plan, path), rows=len(vectors)), queries=queries
    ).to_json()
