"""Losses against NumPy written from the formulas, and against cases whose value is known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llm2clip.train.core.losses import (
    IGNORED_LABEL,
    candidate_loss,
    clip_loss,
    contrastive_loss,
    first_row,
    gather_with_grad,
    masked_next_token_loss,
    sharded_clip_loss,
    siglip_loss,
)


def random_rows(rows: int, width: int = 5, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cross_entropy(logits: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-(targets * log_probabilities).sum(1).mean())


def test_contrastive_loss_is_the_formula_with_and_without_hard_negatives():
    queries, positives, negatives = random_rows(4), random_rows(4, seed=1), random_rows(7, seed=2)
    q, p, n = (unit(rows.numpy().astype(np.float64)) for rows in (queries, positives, negatives))
    with_negatives = cross_entropy(20 * q @ np.vstack((p, n)).T, np.eye(4, 11))
    without = cross_entropy(20 * q @ p.T, np.eye(4))
    assert contrastive_loss(queries, positives, negatives, scale=20).item() == pytest.approx(with_negatives)
    assert contrastive_loss(queries, positives, scale=20).item() == pytest.approx(without)


def test_contrastive_loss_of_a_collapsed_encoder_is_chance():
    same = torch.ones(8, 3)
    assert contrastive_loss(same, same, scale=50).item() == pytest.approx(math.log(8))
    assert contrastive_loss(same, same, same, scale=50).item() == pytest.approx(math.log(16))


def test_candidate_loss_takes_indices_in_any_order_and_distributions():
    queries, candidates = random_rows(3), random_rows(6, seed=1)
    indices = torch.tensor([5, 0, 3])
    one_hot = torch.nn.functional.one_hot(indices, 6).float()
    logits = 10 * unit(queries.numpy().astype(np.float64)) @ unit(candidates.numpy().astype(np.float64)).T
    expected = cross_entropy(logits, one_hot.numpy().astype(np.float64))
    assert candidate_loss(queries, candidates, indices, scale=10).item() == pytest.approx(expected)
    assert candidate_loss(queries, candidates, one_hot, scale=10).item() == pytest.approx(expected)
    shared = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1.0], [0.25, 0.25, 0.25, 0.25, 0, 0]])
    expected = cross_entropy(logits, shared.numpy().astype(np.float64))
    assert candidate_loss(queries, candidates, shared, scale=10).item() == pytest.approx(expected)


def test_masked_next_token_loss_shifts_and_averages_over_labels_only():
    logits = torch.zeros(1, 4, 3)
    logits[0, 1, 2] = math.log(8)  # the state at 1 gives token 2 the probability 8/10
    logits[0, 2, 0] = 1000.0  # may not count: nothing is asked at 3
    labels = torch.tensor([[1, IGNORED_LABEL, 2, IGNORED_LABEL]])
    assert masked_next_token_loss(logits, labels).item() == pytest.approx(-math.log(0.8))


def test_masked_next_token_loss_of_a_batch_without_labels_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = masked_next_token_loss(logits, torch.full((2, 3), IGNORED_LABEL))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_clip_loss_by_hand():
    # Two pairs at right angles: each row's softmax is (e^s, 1) / (e^s + 1) on both sides.
    images = texts = torch.eye(2)
    scale = 3.0
    expected = math.log(1 + math.exp(-scale))
    assert clip_loss(images, texts, logit_scale=scale).item() == pytest.approx(expected)
    assert clip_loss(images, texts.flip(0), logit_scale=scale).item() == pytest.approx(expected + scale)
    smoothed = 0.9 * expected + 0.1 * (expected + (expected + scale)) / 2
    assert clip_loss(images, texts, logit_scale=scale, label_smoothing=0.1).item() == pytest.approx(smoothed)


def test_clip_loss_asks_both_directions():
    images = torch.nn.functional.normalize(random_rows(5), dim=-1)
    texts = torch.nn.functional.normalize(random_rows(5, seed=1), dim=-1)
    logits = 7 * (images @ texts.T).numpy().astype(np.float64)
    expected = (cross_entropy(logits, np.eye(5)) + cross_entropy(logits.T, np.eye(5))) / 2
    assert clip_loss(images, texts, logit_scale=7).item() == pytest.approx(expected)
    assert clip_loss(texts, images, logit_scale=7).item() == pytest.approx(expected)


def test_siglip_loss_by_hand_and_from_any_first_text():
    images = torch.eye(3)[:2]
    scale, bias = 2.0, -1.0
    match, other = math.log1p(math.exp(-(scale + bias))), math.log1p(math.exp(bias))
    loss = siglip_loss(images, torch.eye(3), logit_scale=scale, logit_bias=bias)
    assert loss.item() == pytest.approx((2 * match + 4 * other) / 2)
    rolled = torch.eye(3).roll(1, 0)
    moved = siglip_loss(images, rolled, logit_scale=scale, logit_bias=bias, first_text=1)
    assert moved.item() == pytest.approx(loss.item())


def test_clip_loss_gradients_reach_a_learnt_scale():
    log_scale = torch.tensor(1.0, requires_grad=True)
    clip_loss(torch.eye(2), torch.eye(2), logit_scale=log_scale.exp()).backward()
    # d/ds log(1 + e^-s) * ds/dlog_scale
    scale = math.e
    assert log_scale.grad is not None
    assert log_scale.grad.item() == pytest.approx(-scale / (1 + math.exp(scale)))


def test_gather_with_grad_in_one_process_is_the_identity():
    features = random_rows(3).requires_grad_()
    assert gather_with_grad(features) is features
    assert first_row(features) == 0
    texts = random_rows(3, seed=1)
    alone = clip_loss(features, texts, logit_scale=2.0)
    assert sharded_clip_loss(features, texts, logit_scale=2.0).item() == pytest.approx(alone.item())


def test_losses_refuse_mismatched_shapes():
    ones = torch.ones
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(3, 3\)"):
        contrastive_loss(ones(2, 3), ones(3, 3), scale=1)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        clip_loss(ones(2, 3), ones(2, 4), logit_scale=1)
    with pytest.raises(ValueError, match=r"2 indices or a \(2, 4\) float distribution .* got \(2, 3\)"):
        candidate_loss(ones(2, 3), ones(4, 3), ones(2, 3), scale=1)
    with pytest.raises(ValueError, match=r"2 indices .* got \(1,\) of torch.int64"):
        candidate_loss(ones(2, 3), ones(4, 3), torch.tensor([0]), scale=1)
    with pytest.raises(ValueError, match="need texts from row 1 on, got 2 texts"):
        siglip_loss(ones(2, 3), ones(2, 3), logit_scale=1, logit_bias=0, first_text=1)
