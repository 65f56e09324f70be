import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.rank_positions import Positives
from llm2clip.eval.metrics.recall import (
    Ties,
    Unmatched,
    best_rank,
    direction_metrics,
    found_share,
    retrieval_metrics,
)

from .matrices import matrices, orders

REAL_VECTORS = Path(__file__).resolve().parents[3] / "shared" / "data" / "clip_vitb32_flickr8k_val"

# Four texts, eight images. Text 0: right image first. Text 1: right images 3 and 4, the better one is fourth.
# Text 2: right image tied with two wrong ones at the top. Text 3: right image last.
HAND = np.array(
    [[9, 8, 7, 6, 5, 4, 3, 2], [9, 8, 7, 6, 5, 4, 3, 2], [5, 1, 5, 1, 1, 5, 1, 1], [9, 8, 7, 6, 5, 4, 3, 2]],
    dtype=np.float32,
)
HAND_POSITIVES = {0: 0, 1: [3, 4], 2: [5], 3: [7]}


def test_retrieval_metrics_text_to_image_by_hand():
    result = retrieval_metrics(HAND, positives=HAND_POSITIVES, ks=(1, 2, 3, 4, 8), unmatched=Unmatched.SKIP)
    recall = result.text_to_image.recall
    assert [recall[k].pessimistic for k in (1, 2, 3, 4, 8)] == [0.25, 0.25, 0.5, 0.75, 1.0]
    assert [recall[k].optimistic for k in (1, 2, 3, 4, 8)] == [0.5, 0.5, 0.5, 0.75, 1.0]
    assert recall[1].expected == pytest.approx((1 + 0 + 1 / 3 + 0) / 4)
    assert recall[2].expected == pytest.approx((1 + 0 + 2 / 3 + 0) / 4)
    assert result.text_to_image.median_rank == 3.5  # ranks 1, 4, 3, 8
    assert result.text_to_image.mean_recall == pytest.approx((0.25 + 0.25 + 0.5 + 0.75 + 1) / 5)
    assert (result.text_to_image.queries, result.text_to_image.gallery) == (4, 8)


def test_retrieval_metrics_image_to_text_by_hand():
    skipped = retrieval_metrics(
        HAND, positives=HAND_POSITIVES, ks=(1, 3), unmatched=Unmatched.SKIP
    ).image_to_text
    # Columns of images 0, 3, 4, 5 and 7: text 0 ties with texts 1 and 3; text 1 with 0 and 3 (twice);
    # text 2 wins; text 3 ties with 0 and 1.
    assert (skipped.queries, skipped.unmatched, skipped.gallery) == (5, 3, 4)
    assert skipped.recall[1].pessimistic == 0.2
    assert skipped.recall[1].expected == pytest.approx((1 + 4 / 3) / 5)
    assert skipped.recall[1].optimistic == 1.0
    assert skipped.recall[3].pessimistic == 1.0
    missed = retrieval_metrics(
        HAND, positives=HAND_POSITIVES, ks=(1, 3), unmatched=Unmatched.MISS
    ).image_to_text
    assert (missed.queries, missed.unmatched) == (8, 3)
    assert missed.recall[1].pessimistic == pytest.approx(1 / 8)
    assert missed.recall[3].pessimistic == pytest.approx(5 / 8)


def test_retrieval_metrics_asks_what_unmatched_images_count():
    with pytest.raises(ValueError, match=r"3 of 8 queries have no right answer.*Unmatched\.SKIP"):
        retrieval_metrics(HAND, positives=HAND_POSITIVES)
    result = retrieval_metrics(np.array([[0.2, 0.9]]), positives={0: 0}, ks=(1,), unmatched=Unmatched.SKIP)
    assert result.text_to_image.recall[1].pessimistic == 0.0  # the other image stays in the gallery


def test_retrieval_metrics_of_a_collapsed_model_is_zero():
    result = retrieval_metrics(np.full((1000, 1000), 0.5), positives=np.arange(1000))
    for direction in (result.text_to_image, result.image_to_text):
        assert direction.recall[10].pessimistic == 0.0
        assert direction.recall[10].expected == pytest.approx(0.01)
        assert direction.recall[10].optimistic == 1.0
        assert direction.median_rank == 1000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_retrieval_metrics_refuses_scores_that_are_not_finite(bad):
    scores = HAND.copy()
    scores[2, 6] = bad
    with pytest.raises(ValueError, match=f"score {bad} for query 2 and answer 6, expected finite"):
        retrieval_metrics(scores, positives=HAND_POSITIVES, unmatched=Unmatched.SKIP, chunk=1)


def test_retrieval_metrics_refuses_a_vector_of_nan():
    images = np.eye(4, dtype=np.float32)
    images[1] = np.nan
    with pytest.raises(ValueError, match="score nan for query 0 and answer 1"):
        retrieval_metrics(
            Embeddings(texts=np.eye(4, dtype=np.float32), images=images), positives=np.arange(4)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positives": np.arange(3)}, r"shape \(3,\).*expected bool \(4, 8\) or integers \(4,\)"),
        ({"positives": np.arange(4) + 5}, "got answer 8 in the positives, expected 0 to 7"),
        ({"positives": {-1: 0}}, "got query -1 in the positives, expected 0 to 3"),
        ({"positives": [[0], [1]]}, "positives for 2 queries, expected 4"),
        ({"positives": {0: []}}, "without a single right pair"),
        ({"positives": HAND_POSITIVES, "ks": (0,)}, r"ks \[0\], expected different whole numbers"),
        ({"positives": HAND_POSITIVES, "ks": ()}, r"ks \[\]"),
        ({"positives": HAND_POSITIVES, "ks": (1, 1)}, r"ks \[1, 1\]"),
        ({"positives": HAND_POSITIVES, "chunk": 0}, "chunk 0, expected at least 1"),
        ({"positives": Positives.of([0, 1], shape=(2, 2))}, r"positives for \(2, 2\).*expected \(4, 8\)"),
    ],
)
def test_retrieval_metrics_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(HAND, unmatched=Unmatched.SKIP, **arguments)


def test_embeddings_refuse_shapes_that_disagree():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        Embeddings(texts=np.zeros((2, 3)), images=np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"scores of shape \(0, 3\)"):
        retrieval_metrics(np.zeros((0, 3)), positives=[])


def test_positives_forms_mean_the_same():
    matrix = np.zeros((4, 8), dtype=bool)
    matrix[[0, 1, 1, 2, 3], [0, 3, 4, 5, 7]] = True
    forms = [matrix, HAND_POSITIVES, [[0], [3, 4, 3], 5, (7,)], Positives.of(matrix, shape=(4, 8))]
    results = [retrieval_metrics(HAND, positives=form, unmatched=Unmatched.MISS) for form in forms]
    assert all(result == results[0] for result in results)
    one = retrieval_metrics(HAND, positives=np.array([0, 3, 5, 7]), unmatched=Unmatched.MISS)
    assert one == retrieval_metrics(HAND, positives={0: 0, 1: 3, 2: 5, 3: 7}, unmatched=Unmatched.MISS)


def test_best_rank_of_a_query_without_answer():
    where = best_rank(HAND, positives={0: 0})
    assert where.ranks().tolist() == [1.0, math.inf, math.inf, math.inf]
    assert direction_metrics(where, unmatched=Unmatched.MISS).median_rank == math.inf
    assert direction_metrics(where, unmatched=Unmatched.SKIP).median_rank == 1.0


@given(matrices(4), st.integers(1, 7), st.sampled_from([1, 2, None]))
def test_best_rank_equals_a_count_over_all_orders(case, k, chunk):
    scores, right = case
    where = best_rank(scores, positives=right, chunk=chunk)
    for query, row in enumerate(scores):
        hits = [float(right[query, list(order[:k])].any()) for order in orders(row)]
        assert where.hits(k, ties=Ties.PESSIMISTIC)[query] == min(hits)
        assert where.hits(k, ties=Ties.OPTIMISTIC)[query] == max(hits)
        assert where.hits(k, ties=Ties.EXPECTED)[query] == pytest.approx(np.mean(hits), abs=1e-12)
        if right[query].any():
            ranks = [1 + int(np.argmax(right[query, list(order)])) for order in orders(row)]
            assert where.ranks(ties=Ties.PESSIMISTIC)[query] == max(ranks)
            assert where.ranks(ties=Ties.OPTIMISTIC)[query] == min(ranks)
            assert where.ranks(ties=Ties.EXPECTED)[query] == pytest.approx(np.mean(ranks))


@given(matrices(4), st.integers(1, 7), st.sampled_from([1, 2, None]))
def test_found_share_equals_the_worst_over_all_orders(case, k, chunk):
    scores, right = case
    share = found_share(scores, positives=right, k=k, chunk=chunk)
    for query, row in enumerate(scores):
        found = min(int(right[query, list(order[:k])].sum()) for order in orders(row))
        assert share[query] == pytest.approx(found / max(right[query].sum(), 1))


@given(matrices(4))
def test_retrieval_metrics_directions_are_transposes(case):
    scores, right = case
    result = retrieval_metrics(scores, positives=right, unmatched=Unmatched.MISS)
    flipped = retrieval_metrics(scores.T, positives=right.T, unmatched=Unmatched.MISS)
    assert result.text_to_image == flipped.image_to_text
    assert result.image_to_text == flipped.text_to_image


@given(matrices(4), st.randoms(use_true_random=False))
def test_retrieval_metrics_ignores_the_order_of_items(case, random):
    scores, right = case
    texts, images = list(range(scores.shape[0])), list(range(scores.shape[1]))
    random.shuffle(texts)
    random.shuffle(images)
    shuffled = retrieval_metrics(
        scores[np.ix_(texts, images)], positives=right[np.ix_(texts, images)], unmatched=Unmatched.MISS
    )
    plain = retrieval_metrics(scores, positives=right, unmatched=Unmatched.MISS)
    assert shuffled.text_to_image.median_rank == plain.text_to_image.median_rank
    for k in (1, 5, 10):
        for rule in ("pessimistic", "expected", "optimistic"):
            assert getattr(shuffled.text_to_image.recall[k], rule) == pytest.approx(
                getattr(plain.text_to_image.recall[k], rule)
            )


@pytest.mark.skipif(
    not REAL_VECTORS.is_dir(), reason="needs the CLIP vectors of Flickr8k, which are not shipped"
)
def test_retrieval_metrics_of_real_clip_vectors():
    images, texts = (
        np.load(REAL_VECTORS / name).astype(np.float32) for name in ("val_image.npy", "val_text_caption0.npy")
    )
    rows = [json.loads(line) for line in (REAL_VECTORS / "val_rows.jsonl").read_text().splitlines()]
    assert len(rows) == len(images) == len(texts) == 1000
    result = retrieval_metrics(Embeddings(texts=texts, images=images), positives=np.arange(1000))
    percent = {
        name: [round(100 * direction.recall[k].pessimistic, 1) for k in (1, 5, 10)]
        for name, direction in (("t2i", result.text_to_image), ("i2t", result.image_to_text))
    }
    assert percent == {"t2i": [55.9, 80.8, 88.6], "i2t": [55.8, 83.1, 91.8]}
