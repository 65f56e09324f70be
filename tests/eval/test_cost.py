import itertools

import pytest

from llm2clip.eval.runner.throughput import CostOptions, measure_cost


def test_rates_are_those_of_the_clock(colours, tars):
    """A clock that advances 0.5 s with every look: each call takes 0.5 s."""
    ticks = itertools.count(0, 0.5)
    encoder = colours.Encoder()
    images = [tars.colour(rgb) for rgb in colours.palette.values()]
    options = CostOptions(rounds=2, batch_sizes=(1, 4, 16, 64), clock=lambda: next(ticks))
    cost = measure_cost(encoder, images=images, texts=["red", "green blue"], options=options)
    assert (cost.images_per_second, cost.captions_per_second) == (len(images) / 0.5, 2 / 0.5)
    assert (cost.query_p50_ms, cost.query_p95_ms) == (500, 500)
    assert (cost.parameters, cost.dim, cost.vector_bytes) == (1_500_000, 12, 24)
    assert cost.threads >= 1
    assert cost.per_million_queries(3.6) == pytest.approx(3.6 / 3600 / 4 * 1e6)
    # Two looks a round: six images need batches 1, 4 and 16, two texts 1 and 4, and each text is asked twice.
    assert next(ticks) / 0.5 == 2 * 2 * (3 + 2) + 2 * 2 * 2


def test_the_best_batch_counts(colours, tars):
    now = 0.0

    class Slow(colours.Encoder):
        def _text_batch(self, texts):
            nonlocal now
            now += 1.0 + 0.3 * max(0, len(texts) - 8)  # best at eight
            return super()._text_batch(texts)

    options = CostOptions(rounds=1, batch_sizes=(1, 8, 32), clock=lambda: now)
    cost = measure_cost(
        Slow(), images=[tars.colour((255, 0, 0))], texts=["red", "blue"] * 16, options=options
    )
    assert (cost.caption_batch, cost.captions_per_second) == (8, 32 / 4)
    assert (cost.query_p50_ms, cost.query_p95_ms) == (1000, 1000)


def test_peak_memory_is_that_while_encoding(colours, tars):
    class Large(colours.Encoder):
        def _text_batch(self, texts):
            bytearray(64 << 20)
            return super()._text_batch(texts)

    images = [tars.colour((0, 255, 0))]
    options = CostOptions(rounds=1, batch_sizes=(1,))
    small = measure_cost(colours.Encoder(), images=images, texts=["red"], options=options).peak_memory_mb
    large = measure_cost(Large(), images=images, texts=["red"], options=options).peak_memory_mb
    if small is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert large - small > 50


def test_nothing_to_encode_is_refused(colours):
    with pytest.raises(ValueError, match="got 0 images and 1 texts, expected at least one of each"):
        measure_cost(colours.Encoder(), images=[], texts=["red"])
