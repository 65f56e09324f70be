"""Searching an index under filters, against a brute force over the images that pass."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from llm2clip.indexer import Index
from llm2clip.indexer.ann import nearest_neighbors
from llm2clip.indexer.filters.compile import WhereError

from .material import unit

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
