"""Maximal marginal relevance against its definition."""

import numpy as np
import pytest

from llm2clip.retrieval.ranking.diversity import RELEVANCE, diverse_order


def unit_rows(count: int, dim: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_diverse_order_equals_the_definition(seed: int):
    vectors = unit_rows(30, 6, seed)
    scores = np.sort(np.random.default_rng(seed).random(30))[::-1].copy()
    expected: list[int] = []
    while len(expected) < 30:

        def gain(place: int) -> float:
            relevance = (scores[place] - scores[-1]) / (scores[0] - scores[-1])
            nearest = max([0.0, *(float(vectors[place] @ vectors[shown]) for shown in expected)])
            return RELEVANCE * relevance - (1 - RELEVANCE) * nearest

        expected.append(max((place for place in range(30) if place not in expected), key=gain))
    assert diverse_order(scores, vectors) == expected


def test_diverse_order_shows_the_best_first_and_a_near_copy_late():
    vectors = np.array([[1, 0, 0], [0.999, 0.04, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    assert diverse_order(np.array([0.9, 0.89, 0.7, 0.5]), vectors) == [0, 2, 3, 1]
    assert diverse_order(np.array([]), np.zeros((0, 3), np.float32)) == []
    assert sorted(diverse_order(np.full(4, 0.5), vectors)) == [0, 1, 2, 3]
