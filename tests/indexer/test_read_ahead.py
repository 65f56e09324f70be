"""Groups of images that are read together."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from llm2clip.indexer.containers.read_ahead import MAX_GROUPS, ReadAheadGroup


def test_read_ahead_group_reads_all_once_and_releases_each():
    loads, ones = [], []
    chunk = ReadAheadGroup(
        lambda: loads.append(1) or [b"a", b"b", b"c"], one=lambda number: ones.append(number) or b"again"
    )
    assert [chunk.take(number) for number in (1, 0, 2)] == [b"b", b"a", b"c"]
    assert (loads, ones) == ([1], [])
    assert chunk.take(1) == b"again"
    assert (loads, ones) == ([1], [1])


def test_read_ahead_group_isolates_errors():
    chunk = ReadAheadGroup(lambda: [b"a", ValueError("damaged"), b"c"], one=lambda number: b"")
    assert (chunk.take(0), chunk.take(2)) == (b"a", b"c")
    with pytest.raises(ValueError, match="damaged"):
        chunk.take(1)


def test_read_ahead_group_is_safe_in_threads():
    loads = []
    chunk = ReadAheadGroup(
        lambda: loads.append(1) or [bytes([n]) for n in range(100)], one=lambda number: b""
    )
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(chunk.take, range(100))) == [bytes([n]) for n in range(100)]
    assert loads == [1]


def test_read_ahead_group_keeps_few_groups_in_memory():
    def made():
        return ReadAheadGroup(lambda: [b"a", b"b"], one=lambda number: b"alone")

    many = [made() for _ in range(10 * MAX_GROUPS)]
    assert [chunk.take(0) for chunk in many] == [b"a"] * len(many)
    assert sum(chunk.waiting for chunk in many) == MAX_GROUPS
    assert [chunk.take(1) for chunk in many] == [b"alone"] * (len(many) - MAX_GROUPS) + [b"b"] * MAX_GROUPS
    assert sum(chunk.waiting for chunk in many) == 0
