import itertools

import pytest

from llm2clip.eval.runner.throughput import TimingOptions, measure_throughput


def test_measure_throughput_reads_the_clock(colours, tars):
    """A clock that advances 0.5 s with every look: each call takes 0.5 s."""
    ticks = itertools.count(0, 0.5)
    encoder = colours.Encoder()
    images = [tars.colour(rgb) for rgb in colours.palette.values()]
    options = TimingOptions(rounds=2, batch_sizes=(1, 4, 16, 64), clock=lambda: next(ticks))
    cost = measure_throughput(encoder, images=images, texts=["red", "green blue"], options=options)
    assert (cost.images_per_second, cost.texts_per_second) == (len(images) / 0.5, 2 / 0.5)
    assert (cost.query_p50_ms, cost.query_p95_ms) == (500, 500)
    assert cost.threads >= 1
    # Two looks a round: six images need batches 1, 4 and 16, two texts 1 and 4, and each text is asked twice.
    assert next(ticks) / 0.5 == 2 * 2 * (3 + 2) + 2 * 2 * 2


def test_measure_throughput_takes_the_best_batch(colours, tars):
    now = 0.0

    class Slow(colours.Encoder):
        def _text_batch(self, texts):
            nonlocal now
            now += 1.0 + 0.3 * max(0, len(texts) - 8)  # best at eight
            return super()._text_batch(texts)

    options = TimingOptions(rounds=1, batch_sizes=(1, 8, 32), clock=lambda: now)
    cost = measure_throughput(
        Slow(), images=[tars.colour((255, 0, 0))], texts=["red", "blue"] * 16, options=options
    )
    assert (cost.text_batch, cost.texts_per_second) == (8, 32 / 4)
    assert (cost.query_p50_ms, cost.query_p95_ms) == (1000, 1000)


def test_measure_throughput_peak_memory_is_that_while_encoding(colours, tars):
    class Large(colours.Encoder):
        def _text_batch(self, texts):
            bytearray(64 << 20)
            return super()._text_batch(texts)

    inputs = {"images": [tars.colour((0, 255, 0))], "texts": ["red"]}
    options = TimingOptions(rounds=1, batch_sizes=(1,))
    small, large = (
        measure_throughput(encoder, **inputs, options=options).peak_memory_mb
        for encoder in (colours.Encoder(), Large())
    )
    assert large - small > 50


def test_measure_throughput_refuses_nothing_to_encode(colours):
    with pytest.raises(ValueError, match="got 0 images and 1 texts, expected at least one of each"):
        measure_throughput(colours.Encoder(), images=[], texts=["red"])
