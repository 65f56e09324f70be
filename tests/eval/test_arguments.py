"""Sets as they are named on a command line."""

from __future__ import annotations

import pytest

from llm2clip.eval.commands.arguments import load_sets
from llm2clip.eval.datasets.tar_images import DatasetError


@pytest.fixture
def places(tmp_path, tars):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(tars.colour((9, 9, 9)))
        (tmp_path / name / "1.txt").write_text("grey")
    return tmp_path


def test_load_sets_refuses_two_sets_of_one_name(places):
    one, other = f"x={places / 'a'}", f"x={places / 'b'}"
    with pytest.raises(
        DatasetError, match=r"/a and .*/b are both called 'x', expected a name for each: --data NAME"
    ):
        list(load_sets([], [one, other], folder=places))


def test_load_sets_reads_a_set_named_twice_once(places):
    assert [each.id for each in load_sets([], [f"{places / 'a'}"] * 2, folder=places)] == ["a"]
