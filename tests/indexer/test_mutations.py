"""Mutated images and containers: a short run of ``mutating.py``."""

import pytest

from .mutating import FINE, run


@pytest.mark.parametrize(("what", "count"), [("images", 100), ("containers", 60)])
def test_mutated_inputs_are_read_or_refused(what, count):
    found = run(what, count, seed=7)
    assert set(found) <= FINE
    assert found.total() == count
