"""The benchmark of texts: what it measures on, and its own arithmetic."""

import json

import numpy as np
import pytest


def test_padded_share_middle_and_drawn_lengths_by_hand():
    from benchmarks.text_side import drawn_lengths, middle, padded_share

    # 10 + 10 and 4 + 4 positions for 10 + 6 and 4 + 1 tokens.
    assert padded_share([4, 6, 10, 1], batch=2) == pytest.approx(1 - 21 / 28)
    assert padded_share([5, 5, 5], batch=2) == 0
    assert middle([9, 1, 5, 7, 3], 3) == (4, 2, 3)
    lengths = drawn_lengths(100)
    assert len(lengths) == 100
    assert sum(length > 60 for length in lengths) == 15


def test_text_side_reads_its_texts_and_model(tmp_path):
    from benchmarks.text_side import _agreement, _ours, write_cut_llama, write_texts

    write_cut_llama(tmp_path / "llama", layers=1, hidden=8)
    tokens = write_texts(tmp_path / "texts.json", tmp_path / "llama", count=20)
    found = json.loads((tmp_path / "texts.json").read_text())
    assert (len(found["texts"]), sum(found["lengths"])) == (20, tokens)
    assert min(found["lengths"]) < 30
    assert 100 < max(found["lengths"]) <= 320
    shortest = sorted(range(20), key=lambda i: found["lengths"][i])[:3]
    job = {
        "model": str(tmp_path / "llama"),
        "texts": str(tmp_path / "texts.json"),
        "vectors": str(tmp_path / "one.npy"),
        "dtype": "float32",
        "clock": "perf_counter",
        "chosen": shortest,
    }
    measured = _ours(job)
    assert measured["seconds"] > 0 < measured["bound"]
    vectors = np.load(tmp_path / "one.npy")
    assert vectors.shape == (3, 2048)
    np.save(tmp_path / "two.npy", 2 * vectors)
    least, other = _agreement(tmp_path / "one.npy", tmp_path / "two.npy")
    assert least == pytest.approx(1)
    assert other < 0.999
