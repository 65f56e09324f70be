"""What encoding cost belongs to the run that encoded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm2clip.eval.measure import keep_cost
from llm2clip.eval.results import CostRecord

ENCODED = CostRecord(
    pictures_encoded=900,
    texts_encoded=800,
    pictures_per_second=30.0,
    texts_per_second=70.0,
    peak_memory_mb=2000,
    threads=4,
)
REMEMBERED = CostRecord(
    pictures_encoded=0,
    texts_encoded=0,
    pictures_per_second=None,
    texts_per_second=None,
    peak_memory_mb=300,
    threads=1,
)


def test_a_run_that_encodes_nothing_keeps_what_it_cost(make_result):
    earlier, again = (replace(make_result(), cost=cost) for cost in (ENCODED, REMEMBERED))
    assert keep_cost(again, earlier).cost == replace(ENCODED, pictures_encoded=0, texts_encoded=0)
    assert keep_cost(again, None).cost == REMEMBERED


@pytest.mark.parametrize("change", ["machine", "encoder"])
def test_what_another_machine_or_encoder_cost_is_not_kept(make_result, change):
    earlier, again = (replace(make_result(), cost=cost) for cost in (ENCODED, REMEMBERED))
    if change == "machine":
        earlier = replace(earlier, machine="another")
    else:
        earlier = replace(earlier, encoder=replace(earlier.encoder, key="9" * 64))
    assert keep_cost(again, earlier).cost == REMEMBERED


def test_a_side_that_is_encoded_anew_has_its_new_rate(make_result):
    some = replace(
        ENCODED, pictures_encoded=0, pictures_per_second=None, texts_per_second=90.0, peak_memory_mb=500
    )
    earlier, again = (replace(make_result(), cost=cost) for cost in (ENCODED, some))
    kept = keep_cost(again, earlier).cost
    assert (kept.pictures_per_second, kept.texts_per_second, kept.peak_memory_mb) == (30.0, 90.0, 2000)
    slower = replace(again, cost=replace(some, threads=1))
    assert keep_cost(slower, earlier).cost.pictures_per_second is None
