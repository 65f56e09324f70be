"""Recall under filters with approximate structures, and how it is kept where they would miss too much."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from llm2clip.indexer.ann import nearest_neighbors as neighbours
from llm2clip.indexer.ann.filtered_recall import LATER, QUERIES, Evidence, Trust
from llm2clip.indexer.ann.index_types import estimate_cost, factory_of, parameters_of
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.ann.plan import Budget, IndexKind, Plan
from llm2clip.indexer.planner.plan_index import make_ann
from llm2clip.indexer.storage.vector_segments import Vectors

from .material import unit

ROWS, DIM, K = 12_000, 32, 10


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """Rows in 60 clusters."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((60, DIM))
    rows = unit(centres[random.integers(0, 60, ROWS)] + 0.5 * random.standard_normal((ROWS, DIM)))
    return Vectors([rows.astype(np.float16)], dim=DIM)


@pytest.fixture(scope="module")
def queries(vectors: Vectors) -> np.ndarray:
    random = np.random.default_rng(1)
    rows = vectors.take(random.integers(0, ROWS, 200)).astype(np.float32)
    return unit(rows + 0.1 * random.standard_normal(rows.shape))


@pytest.fixture(scope="module", params=["ivf-sq8", "hnsw-sq8", "ivf-rabitq"])
def structure(request: pytest.FixtureRequest, vectors: Vectors, tmp_path_factory) -> FaissAnnIndex:
    kind: IndexKind = request.param
    plan = Plan(
        kind=kind,
        factory=factory_of(kind, rows=ROWS, dim=DIM),
        parameters=parameters_of(kind, rows=ROWS),
        rows=ROWS,
        dim=DIM,
        budget=Budget(recall=0.95),
        predicted=estimate_cost(kind, rows=ROWS, dim=DIM),
    )
    path: Path = tmp_path_factory.mktemp("ann") / kind
    return FaissAnnIndex.read(path, plan=make_ann(path, vectors, plan=plan))


def mask(order: np.ndarray, share: float) -> np.ndarray:
    allowed = np.zeros(ROWS, dtype=np.bool_)
    allowed[order[: round(ROWS * share)]] = True
    return allowed


def recall(searching: KnnSearcher, vectors: Vectors, queries: np.ndarray, allowed: np.ndarray) -> float:
    """Against a brute force over what passes, a query at a time."""
    ids = np.flatnonzero(allowed)
    rows = vectors.take(ids).astype(np.float32)
    found = 0
    for query in queries:
        hits = searching.search(query[None], k=K, allowed=allowed)[0]
        assert {id for id, _ in hits} <= set(ids.tolist())
        best = ids[np.argsort(-(rows @ query), kind="stable")[:K]]
        found += len({id for id, _ in hits} & set(best.tolist()))
    return found / (len(queries) * min(K, len(ids)))


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("lying", ["at random", "together"])
@pytest.mark.parametrize("scanned", [False, True])
def test_nearly_all_of_the_exact_answer_is_found_under_any_filter(
    structure: FaissAnnIndex,
    vectors: Vectors,
    queries: np.ndarray,
    share: float,
    lying: str,
    scanned: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    if not scanned:  # have the structure asked where the few rows that pass would be scanned
        monkeypatch.setattr(neighbours, "SCANNED_ROWS", 0)
        monkeypatch.setattr(neighbours, "SCANNED_SHARE", 0.0)
    rows = vectors.take(np.arange(ROWS)).astype(np.float32)
    order = (
        np.argsort(-(rows @ rows[3])) if lying == "together" else np.random.default_rng(2).permutation(ROWS)
    )
    found = recall(KnnSearcher(vectors, candidates=structure), vectors, queries, mask(order, share))
    assert found >= (1.0 if scanned else 0.95)


class Blind:
    """A structure that never finds rows from some id on."""

    rows, exact, slack = ROWS, False, 0.0

    def __init__(self, vectors: Vectors, *, sees: int) -> None:
        self._rows = vectors.take(np.arange(sees)).astype(np.float32)
        self.asked = 0

    def depth(self, k: int) -> int:
        return k

    def candidates(self, queries, *, count, allowed):
        self.asked += len(queries)
        scores = queries @ self._rows.T
        scores[:, ~allowed[: len(self._rows)]] = -2
        order = np.argsort(-scores, axis=1)[:, :count]
        return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("at_once", [1, 7, 200])
def test_a_structure_that_misses_what_passes_is_not_asked_again(
    vectors: Vectors, queries: np.ndarray, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(neighbours, "SCANNED_ROWS", 0)
    blind = Blind(vectors, sees=ROWS // 2)
    searching = KnnSearcher(vectors, candidates=blind)
    allowed = np.arange(ROWS) % 2 == 0  # half of what passes is out of its sight
    exact = KnnSearcher(vectors)
    for start in range(0, len(queries), at_once):
        some = queries[start : start + at_once]
        assert searching.search(some, k=K, allowed=allowed) == exact.search(some, k=K, allowed=allowed)
    assert blind.asked <= max(at_once, 3) if at_once < QUERIES else blind.asked == QUERIES
    assert recall(searching, vectors, queries[:50], allowed) == 1.0


def test_a_structure_that_misses_nothing_is_asked_alone_but_for_some(
    vectors: Vectors, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(neighbours, "SCANNED_ROWS", 0)
    seeing = Blind(vectors, sees=ROWS)
    searching = KnnSearcher(vectors, candidates=seeing)
    allowed = np.arange(ROWS) % 2 == 0
    scanned = []
    scan = searching._scan.candidates
    monkeypatch.setattr(
        searching._scan, "candidates", lambda asked, **rest: scanned.append(len(asked)) or scan(asked, **rest)
    )
    for query in queries:
        searching.search(query[None], k=K, allowed=allowed)
    assert seeing.asked == len(queries)
    assert sum(scanned) == QUERIES + (len(queries) - QUERIES) // LATER


def test_evidence_is_about_hits_that_are_as_good():
    evidence = Evidence()
    evidence.add([[(1, 0.9), (2, 0.8)]], [[(1, 0.9), (7, 0.8)]])  # equally near
    assert (evidence.queries, evidence.wanted, evidence.found) == (1, 2, 2)
    evidence.add([[(1, 0.9), (2, 0.8)]], [[(1, 0.9), (7, 0.7)]])
    assert (evidence.queries, evidence.wanted, evidence.found) == (2, 4, 3)
    evidence.add([[]], [[]])
    assert (evidence.queries, evidence.wanted, evidence.found) == (3, 4, 3)


def test_a_filter_is_known_by_its_mask_while_that_lives():
    trust = Trust()
    one, other = np.ones(3, dtype=np.bool_), np.ones(3, dtype=np.bool_)
    trust.about(one).queries = 5
    assert trust.about(one).queries == 5
    assert trust.about(other).queries == 0
    del one
    gc.collect()
    trust.about(other)
    assert len(trust._known) == 1
