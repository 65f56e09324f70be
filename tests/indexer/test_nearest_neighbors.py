"""Filtered ANN search: recall against brute force, and answers that do not depend on what was searched before."""

from pathlib import Path

import numpy as np
import pytest

from llm2clip.indexer.ann import nearest_neighbors
from llm2clip.indexer.ann.index_types import plan_for
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher, is_scanned, post_filtered
from llm2clip.indexer.ann.plan import Budget, IndexType
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
def ann(request: pytest.FixtureRequest, vectors: Vectors, tmp_path_factory) -> FaissAnnIndex:
    kind: IndexType = request.param
    plan = plan_for(kind, rows=ROWS, dim=DIM, budget=Budget(recall=0.95))
    path: Path = tmp_path_factory.mktemp("ann") / kind
    return FaissAnnIndex.read(path, plan=make_ann(path, vectors, plan=plan))


@pytest.fixture
def never_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the ANN index however few rows a filter allows."""
    monkeypatch.setattr(nearest_neighbors, "SCAN_ROWS", 0)
    monkeypatch.setattr(nearest_neighbors, "SCAN_SHARE", 0.0)


def allowed_rows(vectors: Vectors, share: float, layout: str) -> np.ndarray:
    """A mask of rows drawn at random, or of those nearest to one row, far from most queries."""
    rows = vectors.take(np.arange(ROWS)).astype(np.float32)
    together = layout == "together"
    order = np.argsort(-(rows @ rows[3])) if together else np.random.default_rng(2).permutation(ROWS)
    mask = np.zeros(ROWS, dtype=np.bool_)
    mask[order[: round(ROWS * share)]] = True
    return mask


def recall(search: KnnSearcher, vectors: Vectors, queries: np.ndarray, allowed: np.ndarray) -> float:
    ids = np.flatnonzero(allowed)
    rows = vectors.take(ids).astype(np.float32)
    found = 0
    for query in queries:
        hits = {id for id, _ in search.search(query[None], k=K, allowed=allowed)[0]}
        assert hits <= set(ids.tolist())
        found += len(hits & set(ids[np.argsort(-(rows @ query), kind="stable")[:K]].tolist()))
    return found / (len(queries) * min(K, len(ids)))


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("layout", ["at random", "together"])
def test_knn_searcher_keeps_its_recall_under_filters(ann, vectors, queries, share, layout, never_scanned):
    search = KnnSearcher(vectors, candidates=ann)
    assert recall(search, vectors, queries, allowed_rows(vectors, share, layout)) >= 0.97


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_knn_searcher_is_exact_where_a_filter_allows_few_rows(ann, vectors, queries, share):
    search = KnnSearcher(vectors, candidates=ann)
    assert recall(search, vectors, queries[:50], allowed_rows(vectors, share, "together")) == 1.0


@pytest.mark.parametrize("layout", ["at random", "together"])
def test_knn_searcher_gives_the_same_answer_within_a_session(
    ann, vectors, queries, layout, never_scanned, monkeypatch
):
    search, allowed = KnnSearcher(vectors, candidates=ann), allowed_rows(vectors, 0.3, layout)
    asked = queries[:5]
    first = search.search(asked, k=K, allowed=allowed)
    for query in queries[5:45]:
        search.search(query[None], k=K, allowed=allowed)
    assert search.search(asked, k=K, allowed=allowed) == first
    assert [search.search(query[None], k=K, allowed=allowed)[0] for query in asked] == first
    monkeypatch.setattr(nearest_neighbors, "_FILTERED_BATCH", 300)  # few queries at once
    assert search.search(asked, k=K, allowed=allowed) == first


def test_knn_searcher_finds_newer_rows_and_covered_ones_under_a_filter(vectors, queries, ann, never_scanned):
    rows = vectors.take(np.arange(ROWS))
    grown = Vectors([rows, rows[:3_000]], dim=DIM)  # the newer rows alone could fill every answer
    search = KnnSearcher(grown, candidates=ann)
    allowed = np.arange(len(grown)) % 2 == 0
    assert recall(search, grown, queries[:100], allowed) >= 0.95


class Counting:
    """An ANN index that counts the candidates it is asked for."""

    exact, slack = False, 0.0

    def __init__(self, rows: int) -> None:
        self.rows, self.asked = rows, 0

    def depth(self, k: int) -> int:
        return 2 * k

    def candidates(self, queries: np.ndarray, *, count: int, allowed: np.ndarray | None) -> tuple:
        self.asked += count
        return np.zeros((len(queries), count), np.float32), np.tile(np.arange(count), (len(queries), 1))


@pytest.mark.parametrize(
    ("covered", "share", "k", "asked"),
    [(ROWS, 0.5, 10, 20), (ROWS, 0.5, 5_000, 0), (ROWS - 6_000, 0.5, 10, 0)],
)
def test_knn_searcher_scans_where_an_ann_index_would_need_too_many_candidates(
    vectors, queries, monkeypatch, covered, share, k, asked
):
    monkeypatch.setattr(nearest_neighbors, "SCAN_ROWS", 100)
    ann, allowed = Counting(covered), np.arange(ROWS) >= ROWS * share
    search = KnnSearcher(vectors, candidates=ann)
    if not asked:
        exact = KnnSearcher(vectors).search(queries[:2], k=k, allowed=allowed)
        assert search.search(queries[:2], k=k, allowed=allowed) == exact
    else:
        search.search(queries[:2], k=k, allowed=allowed)
    assert ann.asked == asked


@pytest.mark.parametrize(
    ("allowed", "rows", "scanned"),
    [
        (20_000, 30_000, True),
        (20_001, 30_000, False),
        (20_001, 10**6, False),
        (40_000, 2 * 10**6, True),
        (40_001, 2 * 10**6, False),
    ],
)
def test_is_scanned_is_a_count_or_a_share_of_rows(allowed, rows, scanned):
    assert is_scanned(allowed, rows) is scanned


def test_post_filtered_asks_for_more_and_drops_what_is_not_allowed():
    asked = []

    def search(count: int, effort: float) -> tuple[np.ndarray, np.ndarray]:
        asked.append((count, effort))
        ids = np.array([[7, 2, 4, 1], [3, 5, 6, -1]])
        return np.linspace(1, 0, 8, dtype=np.float32).reshape(2, 4), ids

    allowed = np.array([1, 1, 0, 0, 1, 0, 0, 1], dtype=np.bool_)
    scores, ids = post_filtered(search, count=2, allowed=allowed)
    assert asked == [(8, 2.0)]
    assert ids.tolist() == [[7, 4], [-1, -1]]
    assert np.isneginf(scores).tolist() == [[False, False], [True, True]]
    assert scores.dtype == np.float32
