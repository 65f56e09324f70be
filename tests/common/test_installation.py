"""Free memory: the least of what the system and the container's cgroup report."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm2clip.common.installation import free_memory


@pytest.mark.parametrize(
    ("limit", "usage", "folder", "prefix"),
    [
        ("memory.max", "memory.current", ".", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory", "total_"),
    ],
    ids=["cgroup-v2", "cgroup-v1"],
)
def test_free_memory_respects_the_cgroup_limit(
    tmp_path: Path, limit: str, usage: str, folder: str, prefix: str
):
    outside = free_memory(tmp_path)
    assert 10**7 < outside < 10**14
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    (group / limit).write_text("5000000\n")
    (group / usage).write_text("3000000\n")
    (group / "memory.stat").write_text(f"anon 1\n{prefix}inactive_file 400000\n{prefix}active_file 100000\n")
    assert free_memory(tmp_path) == 2_500_000
    (group / limit).write_text("max\n")
    assert free_memory(tmp_path) > 2_500_000
