"""mAP@R against a count over all orders, recall beside other programs' definitions, products beside exact scores."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.rank_positions import Positives, rank_positions
from llm2clip.eval.metrics.recall import (
    BestRank,
    Ties,
    Unmatched,
    average_precision_at_r,
    found_share,
    retrieval_metrics,
)

from .matrices import matrices, orders


def precision_at_r(right):
    """mAP@R of one list, as its definition reads."""
    wanted = int(right.sum())
    first = right[:wanted]
    return sum(first[: n + 1].mean() for n in range(wanted) if first[n]) / wanted


def by_rule(values):
    return {Ties.PESSIMISTIC: min(values), Ties.EXPECTED: np.mean(values), Ties.OPTIMISTIC: max(values)}


@given(matrices(3), st.sampled_from([1, 2, None]))
def test_average_precision_at_r_equals_a_count_over_all_orders(case, chunk):
    scores, right = case
    pairs = Positives.of(right.astype(bool), shape=scores.shape)
    for matrix, truth, where in zip(
        (scores, scores.T),
        (right, right.T),
        rank_positions(scores, positives=pairs, chunk=chunk),
        strict=True,
    ):
        for query, row in enumerate(matrix):
            values = [0.0]
            if truth[query].any():
                values = [precision_at_r(truth[query, list(order)]) for order in orders(row)]
            for ties, value in by_rule(values).items():
                assert average_precision_at_r(where, ties=ties)[query] == pytest.approx(value, abs=1e-12)


def test_average_precision_at_r_of_one_right_answer_is_recall_at_1():
    scores = np.random.default_rng(0).normal(size=(40, 30))
    result = retrieval_metrics(
        scores, positives=np.random.default_rng(1).integers(0, 30, 40), unmatched=Unmatched.SKIP
    )
    assert result.text_to_image.map_at_r.pessimistic == result.text_to_image.recall[1].pessimistic
    assert result.image_to_text.map_at_r.pessimistic < result.image_to_text.recall[1].pessimistic


# Definitions of other programs, written down again from what they say they count; without ties ours must agree or
# differ as docs/evaluation.md says.


def clip_benchmark_recall(scores, right, k):
    """Share of a query's right answers in the top k; the program reports how often that is above 0."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.zeros(right.shape, dtype=bool)
    np.put_along_axis(found, top, True, axis=1)
    with np.errstate(invalid="ignore"):
        return (found & right).sum(1) / right.sum(1)


def sentence_transformers_metrics(scores, right, k):
    """Accuracy, recall, MRR and MAP at k of information-retrieval evaluation, for binary relevance."""
    ordered = np.take_along_axis(right, np.argsort(-scores, axis=1), axis=1)[:, :k].astype(float)
    wanted = right.sum(1)
    accuracy = ordered.any(1).mean()
    recall = (ordered.sum(1) / wanted).mean()
    first = np.where(ordered.any(1), 1 / (1 + ordered.argmax(1)), 0).mean()
    precision = np.cumsum(ordered, axis=1) / np.arange(1, ordered.shape[1] + 1)
    average = ((precision * ordered).sum(1) / np.minimum(k, wanted)).mean()
    return accuracy, recall, first, average


@pytest.fixture(scope="module")
def untied():
    """50 texts, 12 images, one to four images for each text, every image with a text; no two scores alike."""
    generator = np.random.default_rng(5)
    scores = generator.permutation(600).reshape(50, 12) / 600
    right = np.zeros((50, 12), dtype=bool)
    right[np.arange(50), np.arange(50) % 12] = True
    right |= generator.random((50, 12)) < 0.12
    return scores, right


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_is_clip_benchmarks_any_hit(untied, k):
    scores, right = untied
    result = retrieval_metrics(scores, positives=right, ks=(k,))
    theirs = clip_benchmark_recall(scores, right, k)
    assert result.text_to_image.recall[k].pessimistic == pytest.approx((theirs > 0).mean(), abs=1e-12)
    backward = clip_benchmark_recall(scores.T, right.T, k)
    assert result.image_to_text.recall[k].pessimistic == pytest.approx((backward > 0).mean(), abs=1e-12)
    # What it calls true recall, and text search calls recall, is another number.
    assert found_share(scores, positives=right, k=k) == pytest.approx(theirs, abs=1e-12)
    assert theirs.mean() < result.text_to_image.recall[k].pessimistic


@pytest.mark.parametrize("k", [1, 5, 10])
def test_metrics_beside_sentence_transformers(untied, k):
    scores, right = untied
    accuracy, recall, first, average = sentence_transformers_metrics(scores, right, k)
    result = retrieval_metrics(scores, positives=right, ks=(k,)).text_to_image
    assert result.recall[k].pessimistic == pytest.approx(accuracy, abs=1e-12)
    assert found_share(scores, positives=right, k=k).mean() == pytest.approx(recall, abs=1e-12)
    rows = rank_positions(scores, positives=Positives.of(right, shape=scores.shape), both=False)[0]
    ranks = BestRank.of(rows).ranks()
    assert np.where(ranks <= k, 1 / ranks, 0).mean() == pytest.approx(first, abs=1e-12)
    if k > 1:  # MAP@k reads on to k and divides by min(k, R); mAP@R stops at R
        assert abs(result.map_at_r.pessimistic - average) > 0.05


def test_retrieval_metrics_ties_differ_from_a_stable_sort():
    # By file order the first caption wins: programs that sort stably give 100 % to a collapsed model on the diagonal's
    # head, and 0 % when the gallery is reversed; ours does not depend on the order of the gallery.
    scores, right = np.full((1, 4), 0.5), np.array([[True, False, False, False]])
    assert clip_benchmark_recall(scores, right, 1) == 1
    assert clip_benchmark_recall(scores, right[:, ::-1], 1) == 0
    for truth in (right, right[:, ::-1]):
        recall = retrieval_metrics(
            scores, positives=truth, ks=(1,), unmatched=Unmatched.SKIP
        ).text_to_image.recall
        assert (recall[1].pessimistic, recall[1].expected, recall[1].optimistic) == (0, 0.25, 1)


def brute(texts, images, right):
    """Places by definition: scores summed in double precision, rounded once."""
    scores = (texts.astype(np.float64) @ images.astype(np.float64).T).astype(np.float32)
    query, answer = np.nonzero(right)
    found = {}, {}
    for q, a, v in zip(query, answer, scores[query, answer], strict=True):
        found[0][q, a] = int((scores[q] > v).sum()), int((scores[q] == v).sum())
        found[1][a, q] = int((scores[:, a] > v).sum()), int((scores[:, a] == v).sum())
    return found


def vectors_with_copies(seed, *, dim, dtype=np.float32, noise=0.6):
    """Unit rows: 40 images of which many are copies or nearly, 90 texts likewise."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(40, dim))
    images[20:30] = images[:10]
    images[30:35] = images[:5] + 1e-6 * generator.normal(size=(5, dim))
    texts = images[np.arange(90) % 40] + noise * generator.normal(size=(90, dim))
    texts[80:] = texts[:10]
    rows = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (texts, images)]
    return [side.astype(dtype) for side in rows]


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("chunk", [7, None])
def test_rank_positions_of_products_equal_exact_scores(device, dtype, chunk):
    generator = np.random.default_rng(2)
    texts, images = vectors_with_copies(1, dim=64, dtype=dtype)
    right = generator.random((90, 40)) < 0.08
    right[np.arange(90), np.arange(90) % 40] = True
    pairs = Positives.of(right, shape=right.shape)
    found = rank_positions(
        Embeddings(texts=texts, images=images, device=device), positives=pairs, chunk=chunk
    )
    for where, expected in zip(found, brute(texts, images, right), strict=True):
        columns = (x.tolist() for x in (where.query, where.answer, where.above, where.equal))
        ours = {(q, a): (above, equal) for q, a, above, equal in zip(*columns, strict=True)}
        assert ours == expected
    assert (found[0].equal > 1).any()
    assert (found[1].equal > 1).any()


@pytest.mark.parametrize("device", [None, "cpu"])
def test_rank_positions_of_collapsed_vectors(device):
    vector = np.random.default_rng(0).normal(size=(1, 128)).astype(np.float32)
    vector /= np.linalg.norm(vector)
    pair = Embeddings(texts=vector.repeat(300, 0), images=vector.repeat(200, 0), device=device)
    result = retrieval_metrics(pair, positives=np.arange(300) % 200, chunk=64)
    assert (result.text_to_image.recall[10].pessimistic, result.text_to_image.recall[10].optimistic) == (0, 1)
    assert result.text_to_image.recall[10].expected == pytest.approx(0.05)
    assert result.text_to_image.median_rank == 200
    assert result.image_to_text.map_at_r.pessimistic == 0


@pytest.mark.parametrize("device", [None, "cpu"])
def test_rank_positions_refuse_vectors_too_large(device):
    rows = np.full((2, 4), 1e19, dtype=np.float32)
    with pytest.raises(ValueError, match=r"norms up to 2e\+19, expected unit rows|score inf for query 0"):
        retrieval_metrics(Embeddings(texts=rows, images=rows, device=device), positives=np.arange(2))


def test_rank_positions_hold_no_whole_matrix():
    generator = np.random.default_rng(0)
    texts, images = (generator.normal(size=(count, 8)).astype(np.float32) for count in (12_000, 6_000))
    tracemalloc.start()
    try:
        retrieval_metrics(Embeddings(texts=texts, images=images), positives=np.arange(12_000) // 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 12_000 * 6_000 / 4  # bytes: a quarter of the scores alone


def test_rank_positions_of_nearly_collapsed_vectors_equal_exact_scores():
    generator = np.random.default_rng(0)
    centre = generator.normal(size=64)
    for noise in (1e-2, 1e-4, 1e-6):
        sides = [centre + noise * generator.normal(size=(count, 64)) for count in (300, 60)]
        texts, images = (
            (side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32) for side in sides
        )
        exact = (texts.astype(np.float64) @ images.astype(np.float64).T).astype(np.float32)
        expected = retrieval_metrics(exact, positives=np.arange(300) // 5)
        for device in (None, "cpu"):
            pair = Embeddings(texts=texts, images=images, device=device)
            assert retrieval_metrics(pair, positives=np.arange(300) // 5, chunk=70) == expected
