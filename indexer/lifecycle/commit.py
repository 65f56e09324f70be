"""Build the ANN index of a transaction if it is due, and commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2clip.indexer.ann.faiss_flat import write_faiss
from llm2clip.indexer.ann.plan import Plan
from llm2clip.indexer.core.index_paths import ann_name
from llm2clip.indexer.core.results import StoredVectors
from llm2clip.indexer.storage.manifest import DEFAULT_PLAN, KIND, Ann, Manifest
from llm2clip.indexer.storage.transaction import Transaction, writing
from llm2clip.indexer.storage.vector_segments import open_vectors

Planner = Callable[[Path, StoredVectors], Mapping[str, Any]]
"""Chooses an ANN index for some vectors, writes it to a file and returns its plan."""
_SMALL_TAIL = 20_000


def commit(
    transaction: Transaction,
    folder: Path,
    *,
    planner: Planner | None = None,
    plan: Mapping[str, Any] | None = None,
    cover_all: bool = False,
) -> Manifest:
    """Commit a transaction, with a new ANN index if there is none or too many vectors came since.

    The ``planner`` chooses it, or else it is built by ``plan``; None: by that of before, else the exact search. With
    ``cover_all`` it covers every vector.
    """
    old = transaction.base.ann
    draft = transaction.finish()
    covered = old.rows if old else 0
    tail = draft.rows - covered
    if tail and (cover_all or old is None or tail > max(_SMALL_TAIL, covered // 4)):
        path = folder / ann_name(transaction.generation)
        with writing(folder):
            vectors = open_vectors(folder, draft.segments, dim=draft.dim)
            if planner is not None:
                transaction.checkpoint()  # a planner may read the items
                made = planner(path, vectors)
            else:
                made = rebuild_ann(path, vectors, plan=plan or (old.plan if old else DEFAULT_PLAN))
        draft = replace(draft, ann=Ann(file=path.name, rows=draft.rows, plan=dict(made)))
    return transaction.commit(draft)


def rebuild_ann(path: Path, vectors: StoredVectors, *, plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write an ANN index of a plan over other vectors than it was made for; returns it with what was measured."""
    if plan["kind"] == KIND:
        write_faiss(path, vectors.blocks(), rows=len(vectors), dim=vectors.dim)
        return plan
    from llm2clip.indexer.planner.plan_index import make_ann, renewed

    return make_ann(path, vectors, plan=renewed(Plan.from_json(plan), rows=len(vectors))).to_json()
