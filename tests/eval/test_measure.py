"""Vectors by hand against counts by hand; what encoding cost belongs to the run that encoded."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet
from llm2clip.eval.results.encoder_record import describe
from llm2clip.eval.results.records import CostRecord
from llm2clip.eval.runner.embedding_cache import Encoded, Spent
from llm2clip.eval.runner.measure import MeasureOptions, Vectors, content_sha256, measure
from llm2clip.eval.runner.throughput import keep_cost, peak_memory_mb, reset_peak_memory
from llm2clip.eval.stats.bootstrap import Resampling, bootstrap_interval

ENCODED = CostRecord(
    **{"images_encoded": 900, "texts_encoded": 800, "images_per_second": 30.0, "texts_per_second": 70.0},
    **{"peak_memory_mb": 2000, "threads": 4},
)
REMEMBERED = CostRecord(
    **{"images_encoded": 0, "texts_encoded": 0, "images_per_second": None, "texts_per_second": None},
    **{"peak_memory_mb": 300, "threads": 1},
)


@pytest.fixture
def both(make_result):
    """An earlier result that encoded, and one whose vectors came from disk."""
    return [replace(make_result(), cost=cost) for cost in (ENCODED, REMEMBERED)]


def test_keep_cost_of_a_run_that_encodes_nothing(both):
    earlier, again = both
    assert keep_cost(again, earlier).cost == replace(ENCODED, images_encoded=0, texts_encoded=0)
    assert keep_cost(again, None).cost == REMEMBERED


def test_keep_cost_ignores_other_machines_and_encoders(both):
    earlier, again = both
    other = replace(earlier.encoder, key="9" * 64)
    for one in (replace(earlier, machine="another"), replace(earlier, encoder=other)):
        assert keep_cost(again, one).cost == REMEMBERED


def test_keep_cost_takes_new_rates(both):
    new = {"images_encoded": 0, "images_per_second": None, "texts_per_second": 90.0, "peak_memory_mb": 500}
    earlier, again = both[0], replace(both[1], cost=replace(ENCODED, **new))
    kept = keep_cost(again, earlier).cost
    assert (kept.images_per_second, kept.texts_per_second, kept.peak_memory_mb) == (30.0, 90.0, 2000)
    slower = replace(again, cost=replace(again.cost, threads=1))
    assert keep_cost(slower, earlier).cost.images_per_second is None


def test_measure_draws_images_with_all_their_captions(tmp_path):
    """Of 40 images with five captions each the first 20 are found by all five, the others by none."""
    photos, captions = 40, 5
    owner = np.repeat(np.arange(photos), captions)
    images = np.eye(photos, dtype=np.float32)
    texts = images[np.where(owner < 20, owner, 0)]
    found = measured(tmp_path, images, texts, owner, resampling=Resampling(times=400))
    at = found.directions[0].recall[0]
    hits = (owner < 20).astype(float)
    by_image = bootstrap_interval(hits, clusters=owner, resampling=Resampling(times=400))
    assert (at.value, at.low, at.high) == (0.5, by_image.low, by_image.high)
    alone = bootstrap_interval(hits, resampling=Resampling(times=400))
    assert at.high - at.low > 2 * (alone.high - alone.low)


def test_content_sha256_covers_images_captions_and_pairs():
    images, captions = ["a", "b"], ["c", "d"]
    ours = content_sha256(images, captions, [(0,), (1,)])
    assert ours == content_sha256(images, captions, [[0], [1]])
    others = {
        content_sha256(images, captions, [(1,), (0,)]),
        content_sha256(images, captions, [(0, 1), (1,)]),
        content_sha256(images[::-1], captions, [(0,), (1,)]),
        content_sha256(images, ["c", "e"], [(0,), (1,)]),
        content_sha256(["a", "b", "c"], ["d"], [(0,), (1,)]),
    }
    assert len(others - {ours}) == 5


def measured(tmp_path, images, texts, owner, *, resampling):
    """A measurement on vectors by hand."""
    the_set = RetrievalSet(
        protocol="by-hand",
        images=[ImageRef(key=str(number), file=tmp_path / "nowhere") for number in range(len(images))],
        captions=[f"caption {number}" for number in range(len(texts))],
        caption_images=[(int(place),) for place in owner],
        complete=True,
    )
    sides = [
        Encoded(vectors=rows, digests=tuple(map(str, range(len(rows)))), spent=Spent())
        for rows in (images, texts)
    ]
    vectors = Vectors(images=sides[0], texts=sides[1])
    options = MeasureOptions(hubs=False, resampling=resampling)
    return measure(the_set, vectors, encoder=describe(FakeEncoder()), options=options)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="this system does not forget the peak of a process",
)
def test_reset_peak_memory_forgets_the_encoder_before():
    large = np.ones(25_000_000)
    before = peak_memory_mb()
    del large
    reset_peak_memory()
    assert peak_memory_mb() <= before - 150
