"""Intervals against closed forms and against simulated experiments with a known truth."""

import numpy as np
import pytest

from llm2clip.eval.metrics.rank_positions import Positives
from llm2clip.eval.stats.bootstrap import (
    Clustered,
    Resampling,
    bootstrap_interval,
    bootstrap_intervals,
    drawn_means,
    macro_interval,
    query_clusters,
)

IMAGES, CAPTIONS, MEAN, INTRACLASS = 150, 5, 0.6, 0.3


def experiment(generator, *, captions=CAPTIONS):
    """Hits of one experiment: images are easy or hard, captions of one image go together. The truth is MEAN."""
    strength = 1 / INTRACLASS - 1
    ease = generator.beta(MEAN * strength, (1 - MEAN) * strength, size=IMAGES)
    hits = generator.random((IMAGES, captions)) < ease[:, None]
    return hits.ravel().astype(float), np.repeat(np.arange(IMAGES), captions)


def test_bootstrap_interval_covers_the_truth_as_often_as_stated():
    generator = np.random.default_rng(0)
    held = {True: 0, False: 0}
    times = 250
    for seed in range(times):
        hits, images = experiment(generator)
        for clustered in held:
            interval = bootstrap_interval(
                hits, clusters=images if clustered else None, resampling=Resampling(times=250, seed=seed)
            )
            held[clustered] += interval.low <= MEAN <= interval.high
    # 95 % of 250 has a standard deviation of 1.4 %; a percentile interval from 150 images falls a little short.
    assert 0.91 <= held[True] / times <= 0.985
    assert held[False] / times < 0.86  # drawing captions instead of images


def test_bootstrap_interval_width_and_design_effect_follow_the_formula():
    hits, images = experiment(np.random.default_rng(7))
    interval = bootstrap_interval(hits, clusters=images)
    by_image = hits.reshape(IMAGES, CAPTIONS).mean(axis=1)
    error = by_image.std() / np.sqrt(IMAGES)
    assert interval.value == pytest.approx(hits.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    independent = hits.var() / len(hits)
    assert interval.design_effect == pytest.approx(error**2 / independent)
    assert interval.design_effect == pytest.approx(1 + (CAPTIONS - 1) * INTRACLASS, rel=0.25)
    assert (interval.queries, interval.clusters) == (IMAGES * CAPTIONS, IMAGES)
    alone = bootstrap_interval(hits)
    assert alone.design_effect == pytest.approx(1)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * np.sqrt(independent), rel=0.05)


def test_bootstrap_intervals_share_draws_and_equal_single_ones():
    generator = np.random.default_rng(3)
    values = generator.random((3, 60))
    clusters = generator.integers(0, 20, 60)
    together = bootstrap_intervals(values, clusters=clusters)
    alone = [bootstrap_interval(row, clusters=clusters) for row in values]
    for one, other in zip(together, alone, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
        assert one.design_effect == pytest.approx(other.design_effect)


def test_bootstrap_interval_depends_on_seed_not_on_labels():
    hits, images = experiment(np.random.default_rng(1))
    how = Resampling(times=200, seed=5)
    first = bootstrap_interval(hits, clusters=images, resampling=how)
    assert bootstrap_interval(hits, clusters=images * 7 - 3, resampling=how) == first
    other = bootstrap_interval(hits, clusters=images, resampling=Resampling(times=200, seed=6))
    assert other.low != first.low


def test_bootstrap_interval_of_a_perfect_result_is_binomial():
    # 0.05 ** (1 / 1000): with a true share of 99.7 % all of 1,000 are found once in twenty times.
    perfect = bootstrap_interval(np.ones(1000))
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(0.05 ** (1 / 1000))
    nothing = bootstrap_interval(np.zeros(50), clusters=np.arange(50) // 5)
    assert (nothing.low, nothing.high) == (0, pytest.approx(1 - 0.05 ** (1 / 10)))


def test_macro_interval_draws_shared_images_once():
    generator = np.random.default_rng(0)
    held = {True: 0, False: 0}
    times = 200
    for seed in range(times):
        hits, images = experiment(generator, captions=4)
        languages = [
            Clustered.of(hits.reshape(-1, 4)[:, n], np.unique(images).astype(np.int64)) for n in range(4)
        ]
        for shared in held:
            mean, low, high = macro_interval(
                languages, shared=shared, resampling=Resampling(times=300, seed=seed)
            )
            assert mean == pytest.approx(hits.mean())
            held[shared] += low <= MEAN <= high
    assert 0.91 <= held[True] / times <= 0.985
    assert held[False] / times < 0.89


def test_drawn_means_of_a_part_without_draws_is_its_mean():
    parts = [
        Clustered.of(np.array([1.0, 0.0]), np.array([0, 1])),
        Clustered.of(np.array([1.0]), np.array([2])),
    ]
    first, second = drawn_means(parts, Resampling(times=50), shared=True)
    assert set(np.round(first[0], 3)) >= {0.0, 0.5, 1.0}
    assert set(second[0]) == {1.0}


def test_query_clusters_join_shared_answers():
    one = Positives.of(np.array([3, 3, 0, 5]), shape=(4, 6))
    assert query_clusters(one).tolist() == [3, 3, 0, 5]
    # Queries 0 and 1 share image 2, queries 1 and 3 image 4; query 2 has none.
    several = Positives.of({0: [1, 2], 1: [2, 4], 3: [4], 4: [0]}, shape=(5, 6))
    clusters = query_clusters(several).tolist()
    assert clusters[0] == clusters[1] == clusters[3] == 1
    assert clusters[4] == 0
    assert clusters[2] < 0


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        (np.ones(3), np.arange(2), r"clusters of shape \(2,\), expected one cluster for each value"),
        (np.ones(0), None, "at least one value"),
        (np.array([1, np.inf]), None, "not finite"),
    ],
)
def test_bootstrap_interval_refuses_bad_values(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, clusters=clusters)


def test_resampling_refuses_bad_settings():
    with pytest.raises(ValueError, match=r"0 draws at confidence 0\.95"):
        Resampling(times=0)
    with pytest.raises(ValueError, match=r"got 0 parts.*expected at least one part"):
        macro_interval([], shared=False)
