"""Searching, against a NumPy brute force over the stored rows."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2clip.indexer import Hit, Index, IndexerError
from llm2clip.indexer.ann import nearest_neighbors
from llm2clip.indexer.ann.faiss_flat import rerank
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.filters.compile import WhereError
from llm2clip.indexer.storage.vector_segments import Vectors

from .material import unit


def brute_force(rows: np.ndarray, queries: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """(id, score) of the best rows, equal scores by id; rows as stored, in float16."""
    stored = rows.astype(np.float16).astype(np.float64)
    answers = []
    for query in queries.astype(np.float64):
        scores = [float(np.float32(sum(a * b for a, b in zip(row, query, strict=True)))) for row in stored]
        order = sorted(range(len(rows)), key=lambda n: (-scores[n], n))[:k]
        answers.append([(n, scores[n]) for n in order])
    return answers


def found(answers: list[list[Hit]]) -> list[list[tuple[int, float]]]:
    return [[(hit.id, hit.score) for hit in hits] for hits in answers]


def check_equal(got: list[list[tuple[int, float]]], expected: list[list[tuple[int, float]]]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert [id for id, _ in one] == [id for id, _ in other]
        np.testing.assert_allclose([s for _, s in one], [s for _, s in other], rtol=0, atol=1e-7)


def test_search_returns_hits_with_all_fields(index_of):
    index = index_of(np.eye(8, dtype=np.float32))
    [[first, second]] = index.search(np.eye(8, dtype=np.float32)[5:6], k=2)
    names = {"key": "5.png", "uri": "/p/5.png", "caption": "number 5"}
    names |= {"time": "1970-01-01T00:00:00Z", "time_source": "file"}
    assert first == Hit(id=5, score=1.0, rank=1, metadata={}, width=6, height=1, **names)
    assert (second.id, second.score, second.rank) == (0, 0.0, 2)
    assert len(index) == 8


rows_with_repeats = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@settings(max_examples=25)
@given(choices=rows_with_repeats, k=st.integers(1, 70), seed=st.integers(0, 3))
def test_search_ranks_equal_rows_by_id(choices, k, seed):
    rng = np.random.default_rng(seed)
    base = unit(rng.standard_normal((6, 5)))
    rows, query = base[choices], unit(rng.standard_normal((1, 5)))
    vectors = Vectors([rows.astype(np.float16)], dim=5)
    [expected] = brute_force(rows, query, k)
    check_equal(KnnSearcher(vectors).search(query, k=k), [expected])
    proposed = np.random.default_rng(seed).permutation(len(rows))[None]
    check_equal(rerank(vectors, query, proposed, k=k), [expected])


def test_search_settles_ties_beyond_the_candidates(index_of):
    """More equal rows than candidates: those of the lowest ids belong into the answer."""
    rng = np.random.default_rng(1)
    base = unit(rng.standard_normal((3, 16)))
    rows = base[rng.integers(0, 3, size=3000)]
    index = index_of(rows)
    query = unit(base[:1] + 0.1 * base[1:2])
    expected = [n for n in range(3000) if np.array_equal(rows[n], rows[int(np.argmax(rows @ query[0]))])][:12]
    assert [hit.id for hit in index.search(query, k=12)[0]] == expected


def test_search_ranks_equal_rows_of_a_whole_index_by_id(index_of):
    index = index_of(np.tile(unit(np.ones((1, 4))), (10_000, 1)))
    assert [hit.id for hit in index.search(unit(np.ones((1, 4))), k=5)[0]] == [0, 1, 2, 3, 4]


def test_search_does_not_depend_on_the_batch(index_of):
    rng = np.random.default_rng(2)
    index = index_of(unit(rng.standard_normal((300, 40))))
    queries = unit(rng.standard_normal((300, 40)))
    together = index.search(queries, k=5)
    for number in (0, 1, 150, 299):
        assert index.search(queries[number : number + 1], k=5)[0] == together[number]


def test_search_returns_fewer_hits_than_k_from_a_small_index(index_of):
    index = index_of(np.eye(3, dtype=np.float32))
    assert [len(hits) for hits in index.search(np.eye(3, dtype=np.float32)[:2], k=50)] == [3, 3]


def test_search_of_no_queries_is_empty(index_of):
    assert index_of(np.eye(3, dtype=np.float32)).search(np.empty((0, 3), dtype=np.float32)) == []


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((1, 4), np.float32), 1, r"shape \(n, 3\), got \(1, 4\).*encoder 'rows'"),
        (np.ones(3, np.float32), 1, r"shape \(n, 3\), got \(3,\)"),
        (np.full((1, 3), 2, np.float32), 1, r"length 1, got lengths 3.464 to 3.464"),
        (np.full((1, 3), np.nan, np.float32), 1, r"finite rows of length 1"),
        (np.eye(3, dtype=np.float32), 0, r"k must be at least 1, got 0"),
    ],
)
def test_search_refuses_wrong_queries(index_of, queries, k, message):
    with pytest.raises(IndexerError, match=message):
        index_of(np.eye(3, dtype=np.float32)).search(queries, k=k)


def test_search_is_safe_in_threads(index_of):
    rng = np.random.default_rng(3)
    rows = unit(rng.standard_normal((400, 12)))
    index: Index = index_of(rows)
    queries = [unit(rng.standard_normal((2, 12))) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda q: index.search(q, k=4), queries))
    for query, answer in zip(queries, answers, strict=True):
        check_equal(found(answer), brute_force(rows, query, 4))


ROWS, DIM = 6000, 16


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return unit(np.random.default_rng(0).standard_normal((ROWS, DIM)))


@pytest.fixture
def index(index_of: Callable[[np.ndarray], Index], rows: np.ndarray) -> Index:
    return index_of(rows)  # of images as wide as their id plus one


@pytest.mark.parametrize("passing", [0, 1, 6, 60, 600, 3000, ROWS])
@pytest.mark.parametrize("scanned", [0, 10**9])
def test_filtered_search_equals_brute_force(index, rows, passing, scanned, monkeypatch):
    monkeypatch.setattr(
        nearest_neighbors, "SCAN_ROWS", scanned
    )  # both ways to search, whatever would be chosen
    queries = unit(np.random.default_rng(1).standard_normal((5, DIM)))
    stored = rows.astype(np.float16).astype(np.float64)
    chosen = np.arange(ROWS - passing, ROWS)
    found = index.search(queries, k=10, where=f"width > {ROWS - passing}")
    for query, hits in zip(queries, found, strict=True):
        scores = stored[chosen] @ query
        best = chosen[np.lexsort((chosen, -scores.astype(np.float32)))[:10]]
        assert [hit.id for hit in hits] == best.tolist()
        assert [hit.rank for hit in hits] == list(range(1, min(10, passing) + 1))
        np.testing.assert_allclose([hit.score for hit in hits], stored[best] @ query, atol=1e-6)


def test_filtered_search_refuses_invalid_filters(index, rows):
    with pytest.raises(WhereError, match="no field 'wide'"):
        index.search(rows[:1], where="wide > 3")
    with pytest.raises(WhereError, match="the filter is empty"):
        index.search(rows[:1], where=" ")


def test_allowed_is_the_mask_of_a_filter(index):
    assert index.allowed() is None
    mask = index.allowed("caption = 'number 77' OR width BETWEEN 2 AND 4")
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [1, 2, 3, 77]


def test_filtered_search_is_safe_in_threads(index, rows):
    failures: list[object] = []

    def ask(number: int) -> None:
        for _ in range(20):
            hits = index.search(rows[:1], k=1, where=f"width = {number + 1}")[0]
            if [hit.id for hit in hits] != [number]:
                failures.append(hits)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
