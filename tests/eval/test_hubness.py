"""Hubs and corrections against their definitions written out over whole matrices."""

import numpy as np
import pytest

from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.hubness import (
    Correction,
    Corrector,
    corrected,
    corrected_metrics,
    hubness,
    occurrences,
)
from llm2clip.eval.metrics.recall import retrieval_metrics


def unit(generator, *shape):
    rows = generator.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def pair():
    """120 texts, 30 images, three of which lie in the middle of everything."""
    generator = np.random.default_rng(0)
    images = unit(generator, 30, 16)
    texts = images[np.arange(120) % 30] + 0.5 * generator.normal(size=(120, 16)).astype(np.float32)
    images[:3] += 2 * texts.mean(axis=0) / np.linalg.norm(texts.mean(axis=0))
    texts, images = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (texts, images))
    return Embeddings(texts=texts.astype(np.float32), images=images.astype(np.float32))


def softmax(scores, axis):
    shifted = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def nearest_mean(scores, axis, count):
    return np.take(np.sort(scores, axis=axis), range(-count, 0), axis=axis).mean(axis=axis)


def full(pair):
    return pair.texts.astype(np.float64) @ pair.images.astype(np.float64).T


def test_hubness_of_a_known_skew():
    # Items 0 to 3 are returned first for 4, 1, 1 and 0 of six queries: mean 1.5, deviations 2.5, -0.5, -0.5, -1.5.
    scores = np.eye(4)[[0, 0, 0, 0, 1, 2]]
    found = hubness(scores, k=1)
    assert found.skewness == pytest.approx(((15.625 - 0.125 - 0.125 - 3.375) / 4) / (9 / 4) ** 1.5)
    assert (found.never, found.top_share) == (0.25, pytest.approx(4 / 6))


def test_hubness_of_an_even_gallery_is_zero():
    assert hubness(np.eye(50), k=1).skewness == 0
    assert hubness(np.full((7, 30), 0.5), k=10) == hubness(np.full((9, 30), 0.5), k=10)
    assert hubness(np.full((7, 30), 0.5)).skewness == 0


@pytest.mark.parametrize("device", [None, "cpu"])
def test_occurrences_equal_sorted_lists(pair, device):
    scores = full(pair)
    expected = np.bincount(np.argsort(-scores, axis=1)[:, :5].ravel(), minlength=30)
    pair = Embeddings(texts=pair.texts, images=pair.images, device=device)
    assert occurrences(pair, k=5).tolist() == expected.tolist()
    assert occurrences(scores, k=5).tolist() == expected.tolist()
    found = hubness(pair, k=5)
    share = expected / expected.mean() - 1
    assert found.skewness == pytest.approx((share**3).mean() / (share**2).mean() ** 1.5)
    assert found.skewness > 0.5
    assert found.top_share == pytest.approx(expected.max() / 600)


def test_occurrences_share_last_places_among_ties():
    scores = np.array([[3.0, 2, 2, 2, 1], [5, 5, 5, 5, 5]])
    assert occurrences(scores, k=3) == pytest.approx([1 + 0.6, 2 / 3 + 0.6, 2 / 3 + 0.6, 2 / 3 + 0.6, 0.6])


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_corrected_dual_softmax_ranks_by_the_product(pair, scale, device):
    scores = full(pair)
    product = np.log(softmax(scale * scores, 0)) + np.log(softmax(scale * scores, 1))
    corrector = Corrector(correction=Correction.DUAL_SOFTMAX, scale=scale)
    assert (
        np.argsort(corrected(scores, corrector=corrector), axis=1).tolist() == np.argsort(product, 1).tolist()
    )
    expected = retrieval_metrics(product, positives=np.arange(120) % 30)
    pair = Embeddings(texts=pair.texts, images=pair.images, device=device)
    for given in (scores, pair):
        found = corrected_metrics(given, positives=np.arange(120) % 30, corrector=corrector)
        assert found == expected
    plain = retrieval_metrics(pair, positives=np.arange(120) % 30)
    assert expected.text_to_image.recall[1].pessimistic > plain.text_to_image.recall[1].pessimistic


def test_corrected_csls_follows_its_formula(pair):
    scores = full(pair)
    expected = 2 * scores - nearest_mean(scores, 0, 10)[None] - nearest_mean(scores, 1, 10)[:, None]
    corrector = Corrector(correction=Correction.CSLS)
    found = corrected_metrics(pair, positives=np.arange(120) % 30, corrector=corrector)
    assert found == retrieval_metrics(expected, positives=np.arange(120) % 30)
    assert hubness(expected).skewness < hubness(scores).skewness


def test_corrector_csls_with_few_queries_takes_all(pair):
    few = Embeddings(texts=pair.texts[:4], images=pair.images)
    offsets = Corrector(correction=Correction.CSLS).offsets(few)
    assert offsets == pytest.approx(full(few).mean(axis=0) / 2, abs=1e-6)


def test_hubness_of_many_blocks_equals_one(monkeypatch, pair):
    whole = [Corrector(correction=one).offsets(pair) for one in Correction]
    counted = occurrences(pair, k=3)
    monkeypatch.setattr("llm2clip.eval.metrics.blockwise_scores._BLOCK_SCORES", 7 * 30)
    for correction, expected in zip(Correction, whole, strict=True):
        assert Corrector(correction=correction).offsets(pair) == pytest.approx(expected, abs=1e-6)
    assert occurrences(pair, k=3).tolist() == counted.tolist()


@pytest.mark.parametrize("k", [0, 31])
def test_hubness_refuses_a_list_longer_than_the_gallery(pair, k):
    with pytest.raises(ValueError, match=f"got k {k}, expected 1 to 30"):
        hubness(pair, k=k)


def test_corrector_refuses_bad_settings():
    with pytest.raises(ValueError, match=r"scale 0\.0 and 10 neighbours"):
        Corrector(correction=Correction.CSLS, scale=0.0)
