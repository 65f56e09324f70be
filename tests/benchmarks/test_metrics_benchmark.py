"""The two ways that the benchmark of metrics compares count the same."""

import numpy as np
import pytest


def test_metrics_both_ways_agree_with_sorting(monkeypatch):
    from benchmarks import metrics

    monkeypatch.setattr(metrics, "SIZES", {True: (60, 302, 24), False: (5_000, 25_010, 1_280)})
    monkeypatch.setattr(metrics, "NOISE", 2.0)
    texts, images, owner = metrics.vectors(quick=True)
    assert sorted(np.bincount(owner).tolist()) == [5] * 58 + [6] * 2
    scores = texts.astype(np.float64) @ images.astype(np.float64).T
    rank = (scores > np.take_along_axis(scores, owner[:, None], axis=1)).sum(axis=1)
    best = np.array([scores[owner == image, image].max() for image in range(60)])
    back = (scores > best).sum(axis=0)
    expected = [float((side < k).mean()) for side in (rank, back) for k in metrics.KS]
    assert metrics.ours(texts, images, owner) == pytest.approx(expected)
    assert metrics.whole_matrix(texts, images, owner) == pytest.approx(expected)
    assert 0.1 < expected[0] < 0.9


def test_peak_beyond_is_what_a_call_needs():
    from benchmarks.measuring import peak_beyond

    peak = peak_beyond(lambda: bytearray(50_000_000).count(1))
    if np.isnan(peak):
        pytest.skip("this system does not tell the peak memory of a process")
    assert 40 < peak < 70
