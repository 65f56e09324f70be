"""Paired tests against exact formulas, and their rates of error in simulated comparisons."""

import itertools
import math

import numpy as np
import pytest

from llm2clip.eval.stats.bootstrap import Resampling
from llm2clip.eval.stats.paired_tests import against_best, exchange_p_value, holm, paired_test

IMAGES, CAPTIONS = 120, 5


def mcnemar(wins, losses):
    """Exact two-sided chance of so uneven a split of the queries that only one encoder answers."""
    total = wins + losses
    tail = sum(math.comb(total, n) for n in range(min(wins, losses) + 1)) / 2**total
    return min(1.0, 2 * tail)


def results(wins, losses, both, neither):
    first = np.repeat([1.0, 0.0, 1.0, 0.0], (wins, losses, both, neither))
    second = np.repeat([0.0, 1.0, 1.0, 0.0], (wins, losses, both, neither))
    return first, second


@pytest.mark.parametrize(("wins", "losses"), [(9, 1), (6, 6), (0, 5), (7, 3), (0, 0)])
def test_paired_test_of_few_differences_is_mcnemars(wins, losses):
    found = paired_test(*results(wins, losses, 20, 10))
    assert found.p_value == pytest.approx(mcnemar(wins, losses))
    assert (found.wins, found.losses, found.queries) == (wins, losses, 30 + wins + losses)
    assert found.difference == pytest.approx((wins - losses) / found.queries)


def test_paired_test_of_many_differences_comes_near_mcnemars():
    found = paired_test(*results(60, 35, 500, 400))
    assert found.p_value == pytest.approx(mcnemar(60, 35), abs=0.004)
    assert found.low <= found.difference <= found.high
    assert found.low > 0
    never = paired_test(*results(300, 0, 500, 200), resampling=Resampling(times=999))
    assert never.p_value == 1 / 1000


def test_paired_test_exchanges_whole_images():
    gaps = np.array([2.0, -1, 3, 3, 1, 4])
    reached = abs(gaps.sum())
    signs = itertools.product((1, -1), repeat=len(gaps))
    expected = np.mean([abs(np.dot(sign, gaps)) >= reached for sign in signs])
    assert exchange_p_value(gaps, Resampling()) == pytest.approx(expected)
    first = np.concatenate([np.ones(5), np.zeros(5)])
    clusters = np.repeat([0, 1], 5)
    # Five captions of one image say no more than one: two exchanges of four are as extreme.
    found = paired_test(first, np.zeros(10), clusters=clusters)
    assert found.p_value == 1.0
    assert paired_test(first, np.zeros(10)).p_value == pytest.approx(2 / 2**5)


def comparison(generator, *, gain):
    """Hits of two encoders that each find other images easy, the first better by ``gain``."""
    ease = [np.clip(generator.beta(0.7, 0.7, size=IMAGES) + shift, 0, 1)[:, None] for shift in (gain, 0.0)]
    drawn = [(generator.random((IMAGES, CAPTIONS)) < one).ravel().astype(float) for one in ease]
    return drawn, np.repeat(np.arange(IMAGES), CAPTIONS)


def test_paired_test_of_equal_encoders_keeps_its_level():
    generator = np.random.default_rng(0)
    times, called, naive, held = 300, 0, 0, 0
    for seed in range(times):
        (first, second), images = comparison(generator, gain=0.0)
        how = Resampling(times=300, seed=seed)
        found = paired_test(first, second, clusters=images, resampling=how)
        called += found.p_value < 0.05
        held += found.low <= 0 <= found.high
        naive += paired_test(first, second, resampling=how).p_value < 0.05
    # 5 % of 300 has a standard deviation of 1.3 %.
    assert 0.015 <= called / times <= 0.085
    assert 0.91 <= held / times <= 0.985
    assert naive / times > 0.12  # captions exchanged one by one


def test_paired_test_finds_a_better_encoder():
    generator = np.random.default_rng(1)
    found = 0
    for seed in range(50):
        (first, second), images = comparison(generator, gain=0.25)
        test = paired_test(first, second, clusters=images, resampling=Resampling(times=300, seed=seed))
        found += test.p_value < 0.05 and test.difference > 0
    assert found >= 45


def test_paired_test_is_antisymmetric():
    (first, second), images = comparison(np.random.default_rng(2), gain=0.05)
    one, other = (paired_test(*pair, clusters=images) for pair in ((first, second), (second, first)))
    assert (one.difference, one.effect, one.wins) == (-other.difference, -other.effect, other.losses)
    assert one.p_value == other.p_value
    by_image = (first - second).reshape(IMAGES, CAPTIONS).mean(axis=1)
    assert one.effect == pytest.approx(by_image.mean() / by_image.std(ddof=1))


def test_paired_test_refuses_different_queries():
    with pytest.raises(ValueError, match=r"shape \(3,\) and \(4,\).*Compare encoders on the same set"):
        paired_test(np.ones(3), np.ones(4))


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, never falling: 0.04, 0.06, 0.06, 0.06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        holm([0.5, 1.5])


def test_holm_keeps_the_family_wise_level():
    generator = np.random.default_rng(0)
    false_claims = np.mean([min(holm(list(generator.random(20)))) < 0.05 for _ in range(2000)])
    assert 0.035 <= false_claims <= 0.065
    assert np.mean([generator.random(20).min() < 0.05 for _ in range(2000)]) > 0.6  # without it


def test_against_best_tells_who_shares_the_first_place():
    generator = np.random.default_rng(3)
    ease = generator.random(800)
    table = {
        name: (generator.random(800) < ease * factor).astype(float)
        for name, factor in {"good": 1.0, "as good": 0.995, "poor": 0.6}.items()
    }
    best, second, last = against_best(table, resampling=Resampling(times=2000))
    assert {best.name, second.name} == {"good", "as good"}
    assert (best.separable, second.separable, last.separable) == (False, False, True)
    assert last.name == "poor"
    assert last.behind.difference == pytest.approx(best.value - last.value)
    assert last.p_value >= last.behind.p_value
    with pytest.raises(ValueError, match="got no encoder"):
        against_best({})
