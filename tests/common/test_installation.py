"""Free memory: the least of what the system and the container's cgroup report; and users without a home folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm2clip.common.files import NoHomeError, data_home, free_memory


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


def test_data_home_names_the_remedy_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("LLM2CLIP_HOME", "HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # as where there is no entry in passwd either
    with pytest.raises(NoHomeError, match="no home folder: set HOME or LLM2CLIP_HOME"):
        data_home()
    monkeypatch.setenv("LLM2CLIP_HOME", str(tmp_path))
    assert data_home() == tmp_path
