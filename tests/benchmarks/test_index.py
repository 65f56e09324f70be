"""The benchmarks of indexes: their vectors, their arithmetic, and that they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent


def test_synthetic_is_deterministic_with_separate_queries():
    from benchmarks.index_data import BLOCK, synthetic

    first, again = synthetic(BLOCK + 100, 16), synthetic(BLOCK + 100, 16)
    rows = np.concatenate(list(first.blocks()))
    assert rows.shape == (BLOCK + 100, 16)
    assert np.array_equal(rows, np.concatenate(list(again.blocks())))
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float32), axis=1), 1, atol=2e-3)
    queries = np.concatenate([first.queries, first.tuning])
    assert len(np.unique(queries, axis=0)) == len(queries) == 2_000
    assert not {row.tobytes() for row in rows} & {query.tobytes() for query in queries.astype(np.float16)}


def test_clip_jitters_real_vectors(tmp_path):
    from benchmarks.index_data import clip

    assert clip(100, tmp_path) is None
    random = np.random.default_rng(0)
    real = random.standard_normal((40, 8)).astype(np.float32)
    real[:, 4:] *= 0.01  # the jitter must not fill what the real ones leave empty
    np.save(tmp_path / "val_image.npy", real)
    np.save(tmp_path / "val_text_caption0.npy", random.standard_normal((40, 8)).astype(np.float32))
    made = clip(500, tmp_path)
    assert made is not None
    rows = np.concatenate(list(made.blocks())).astype(np.float32)
    assert rows.shape == (500, 8)
    assert np.abs(rows[:, 4:]).mean() < 0.05 < np.abs(rows[:, :4]).mean()
    assert (len(made.queries), len(made.tuning)) == (20, 20)


def test_at_recall_interpolates():
    from benchmarks.index_report import at_recall

    curve = [{"recall": 0.9, "single_ms": 1.0}, {"recall": 1.0, "single_ms": 4.0}]
    assert at_recall(curve, 0.95, "single_ms") == pytest.approx(2.0)  # the mean of logarithms
    assert at_recall(curve, 0.9, "single_ms") == 1.0
    assert at_recall(curve, 0.5, "single_ms") == 1.0
    assert at_recall(curve[:1], 0.95, "single_ms") is None
    assert at_recall([], 0.95, "single_ms") is None


def test_index_scale_and_report_on_a_small_run(tmp_path):
    results = tmp_path / "index.jsonl"
    common = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "check": True}
    arguments = [
        "--collection",
        "clustered:1500x16",
        "--engine",
        "index",
        "exact",
        "ours:ivf-sq8",
        "--threads",
        "1",
    ]
    places = ["--work", str(tmp_path / "work"), "--results", str(results)]
    subprocess.run([sys.executable, "-m", "benchmarks.index_scale", *arguments, *places], **common)
    rows = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    assert [row["piece"] for row in rows] == ["index"] + ["search"] * 10
    exact = [row for row in rows if row.get("kind") == "flat-fp16"]
    assert [row["recall"] for row in exact] == [1.0, 1.0]
    assert all(row["recall"] >= 0.85 for row in rows[1:])
    subprocess.run([sys.executable, "-m", "benchmarks.index_report", "--results", str(results)], **common)
    page = (tmp_path / "index.md").read_text("utf-8")
    assert "| clustered 1,500 x 16 |" in page
    assert "ivf-sq8 at a recall of 0.95: ours takes " in page
