"""What a machine has to offer, from whoever says the least."""

from __future__ import annotations

from llm2clip.indexer import machine


def test_free_memory_is_the_least_that_anybody_says(tmp_path, monkeypatch):
    limit, used, details = (tmp_path / name for name in ("max", "current", "stat"))
    limit.write_text("5000000\n")
    used.write_text("3000000\n")
    details.write_text("anon 1\ninactive_file 400000\nactive_file 100000\n")
    monkeypatch.setattr(machine, "_GROUPS", ((str(limit), str(used), str(details)),))
    assert machine.free_memory() == 2_500_000
    limit.write_text("max\n")
    assert machine.free_memory() > 2_500_000
