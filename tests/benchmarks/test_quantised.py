"""The benchmark of ways to hold a language model: its own arithmetic."""

import numpy as np
import pytest
import torch


def test_held_bytes_counts_the_weights():
    from benchmarks.quantised import held_bytes

    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2, bias=False).bfloat16())
    assert held_bytes(model) == 4 * (15 + 5) + 2 * 10


def test_quantised_rows_have_least_cosine_and_aim(tmp_path):
    from benchmarks.quantised import _cosine, _rows

    np.save(tmp_path / "bfloat16.npy", np.array([[1, 0], [0, 2]], np.float32))
    np.save(tmp_path / "int8.npy", np.array([[3, 0], [1, 1]], np.float32))
    assert _cosine(tmp_path, "bfloat16") == 1
    assert _cosine(tmp_path, "int8") == pytest.approx(0.5**0.5)
    found = {"weights": 2_000_000, "peak": 2_400_000, "seconds": 2.0}
    rows = _rows("int8", found, cosine=0.5, tokens=100)
    assert [row.value for row in rows] == [2, 1.2, 50, 0.5]
    assert [row.met for row in rows] == [None, False, None, None]
