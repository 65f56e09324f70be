"""Images that are read together: each once, let go when it was asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from llm2clip.indexer.containers.read_ahead import MOST, ReadAheadGroup


def test_all_are_read_by_the_first_and_each_is_let_go():
    loads, ones = [], []
    chunk = ReadAheadGroup(
        lambda: loads.append(1) or [b"a", b"b", b"c"], one=lambda number: ones.append(number) or b"again"
    )
    assert [chunk.take(number) for number in (1, 0, 2)] == [b"b", b"a", b"c"]
    assert (loads, ones) == ([1], [])
    assert chunk.take(1) == b"again"
    assert (loads, ones) == ([1], [1])


def test_one_that_cannot_be_read_does_not_harm_the_others():
    chunk = ReadAheadGroup(lambda: [b"a", ValueError("damaged"), b"c"], one=lambda number: b"")
    assert (chunk.take(0), chunk.take(2)) == (b"a", b"c")
    with pytest.raises(ValueError, match="damaged"):
        chunk.take(1)


def test_threads_read_it_once():
    loads = []
    chunk = ReadAheadGroup(
        lambda: loads.append(1) or [bytes([n]) for n in range(100)], one=lambda number: b""
    )
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(chunk.take, range(100))) == [bytes([n]) for n in range(100)]
    assert loads == [1]


def test_of_many_chunks_only_a_few_wait():
    def made():
        return ReadAheadGroup(lambda: [b"a", b"b"], one=lambda number: b"alone")

    many = [made() for _ in range(10 * MOST)]
    assert [chunk.take(0) for chunk in many] == [b"a"] * len(many)
    assert sum(chunk.waiting for chunk in many) == MOST
    assert [chunk.take(1) for chunk in many] == [b"alone"] * (len(many) - MOST) + [b"b"] * MOST
    assert sum(chunk.waiting for chunk in many) == 0
