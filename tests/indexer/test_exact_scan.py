"""Exact search on each device, against a NumPy brute force over the stored float16 vectors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm2clip.indexer import IndexerError
from llm2clip.indexer.ann import index_file
from llm2clip.indexer.ann.exact_scan_torch import TorchScan
from llm2clip.indexer.ann.faiss_flat import TOGETHER, ExactScan, import_faiss, wheel
from llm2clip.indexer.ann.gpu_index import GpuIndex
from llm2clip.indexer.ann.index_file import describe_device, faiss_on_gpu, is_gpu, open_searcher
from llm2clip.indexer.ann.index_types import plan_for
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.ann.plan import Budget
from llm2clip.indexer.planner.plan_index import write_ann
from llm2clip.indexer.storage.vector_segments import Vectors

from .material import clustered

ROWS, DIM = 5_000, 48
ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def has_cagra() -> bool:
    return faiss_on_gpu() and hasattr(import_faiss(), "GpuIndexCagra")


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """With repeated rows, so that there are ties."""
    made = clustered(ROWS, DIM, seed=0).astype(np.float16)
    made[1_000:1_050] = made[7]
    return made


@pytest.fixture(scope="module")
def vectors(rows: np.ndarray) -> Vectors:
    return Vectors([rows[:999], rows[999:1_000], rows[1_000:]], dim=DIM)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(TOGETHER + 10, DIM, seed=1)


def brute_force(
    rows: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores: products of the halves summed in float64, rounded to float32; equal scores by id."""
    ids = np.arange(len(rows)) if allowed is None else np.flatnonzero(allowed)
    scores = np.stack([(rows[ids].astype(np.float64) * query).sum(axis=1) for query in queries]).astype(
        np.float32
    )
    order = np.stack([np.lexsort((ids, -each))[:k] for each in scores])
    return ids[order], np.take_along_axis(scores, order, axis=1)


def filters() -> dict[str, np.ndarray | None]:
    random = np.random.default_rng(2)
    few = np.zeros(ROWS, dtype=np.bool_)
    few[[3, 999, 1_003, 4_999]] = True
    return {
        "none": None,
        "half": random.random(ROWS) < 0.5,
        "few": few,
        "nothing": np.zeros(ROWS, dtype=np.bool_),
    }


@pytest.mark.parametrize("device", ["float16", "cpu", ON_GPU])
@pytest.mark.parametrize("name", filters())
@pytest.mark.parametrize("count", [1, TOGETHER + 10])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_knn_searcher_equals_numpy_byte_for_byte(device, name, count, k, vectors, rows, queries):
    allowed, asked = filters()[name], np.concatenate([rows[7:8].astype(np.float32), queries])[:count]
    searched = None if device == "float16" else TorchScan(vectors, device=device, tile_rows=700)
    answers = KnnSearcher(vectors, candidates=searched).search(asked, k=k, allowed=allowed)
    ids, scores = brute_force(rows, asked, k, allowed)
    assert [[id for id, _ in answer] for answer in answers] == ids.tolist()
    got = np.array([[score for _, score in answer] for answer in answers], dtype=np.float32)
    assert got.tobytes() == scores.tobytes()


@pytest.mark.parametrize("made", ["float16", "cpu", ON_GPU])
@pytest.mark.parametrize("count", [1, TOGETHER])
def test_exact_scan_finds_near_allowed_rows(made, count, vectors, rows, queries):
    searched = ExactScan(vectors) if made == "float16" else TorchScan(vectors, device=made, tile_rows=1_024)
    for allowed in filters().values():
        scores, ids = searched.candidates(queries[:count], count=20, allowed=allowed)
        there = ids >= 0
        assert there.sum(axis=1).tolist() == [20 if allowed is None else min(20, int(allowed.sum()))] * count
        assert allowed is None or allowed[ids[there]].all()
        which = np.nonzero(there)[0]
        exact = (rows[ids[there]].astype(np.float64) * queries[:count][which]).sum(axis=1)
        np.testing.assert_allclose(scores[there], exact, atol=searched.slack)
        known = brute_force(rows, queries[:count], 20, allowed)[1]
        if known.shape[1] == 20:  # ids may differ among equals, their scores may not
            np.testing.assert_allclose(-np.sort(-scores, axis=1), known, atol=searched.slack)


def test_exact_scan_begins_at_an_id(vectors, rows, queries):
    for first in (500, 999, 1_000, 4_990):
        _, ids = ExactScan(vectors, first=first).candidates(queries[:3], count=5, allowed=None)
        known, _ = brute_force(rows[first:], queries[:3], 5, None)
        assert np.array_equal(ids, known + first)


def test_exact_scan_keeps_its_memory_alive(rows, queries):
    scan = ExactScan(Vectors([rows.copy()], dim=DIM))
    filler = [np.zeros((ROWS, DIM), dtype=np.float16) for _ in range(20)]
    _, ids = scan.candidates(queries[:2], count=5, allowed=None)
    assert np.array_equal(np.sort(ids), np.sort(brute_force(rows, queries[:2], 5, None)[0]))
    assert len(filler) == 20


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "mps"])
def test_is_gpu_refuses_other_devices(device):
    with pytest.raises(IndexerError, match=f"the device must be cpu, cuda or cuda:NUMBER, got '{device}'"):
        is_gpu(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_open_searcher_without_a_gpu_refuses_cuda(vectors):
    with pytest.raises(
        IndexerError, match=r"there is no device cuda: torch .* sees no GPU. Search with --device cpu"
    ):
        open_searcher(vectors, device="cuda")


def test_describe_device_names_what_searches(vectors):
    assert open_searcher(vectors, device="cpu") is None
    assert (is_gpu("cuda"), is_gpu("cuda:1"), is_gpu("cpu")) == (True, True, False)
    assert describe_device("cpu") == "cpu: FAISS"
    expected = (
        "FAISS on the GPU" if faiss_on_gpu() else "exact search by torch, as the installed FAISS has no GPU"
    )
    assert describe_device("cuda:1") == f"cuda:1: {expected}"


def test_wheel_names_the_installed_faiss(monkeypatch):
    names = {"faiss-cpu": "1.2.3", "faiss-gpu-cu12": "4.5.6"}
    monkeypatch.setattr("llm2clip.indexer.ann.faiss_flat.package_version", names.get)
    assert wheel() == "faiss-cpu 1.2.3 and faiss-gpu-cu12 4.5.6 (they overwrite each other: keep one)"
    for name, can in {"faiss-cpu": "no GPU", "faiss-gpu-cuvs": "GPU"}.items():
        monkeypatch.setattr("llm2clip.indexer.ann.faiss_flat.package_version", {name: "1.2.3"}.get)
        assert wheel() == f"{name} 1.2.3 ({can})"

    monkeypatch.setattr("llm2clip.indexer.ann.faiss_flat.find_spec", lambda _: None)
    assert wheel() == "none: pip install 'llm2clip-retrieval[cpu]' (or [gpu])"


@pytest.mark.gpu
@pytest.mark.skipif(not faiss_on_gpu(), reason="the installed FAISS has no GPU: torch is tested instead")
@pytest.mark.parametrize("name", filters())
def test_gpu_index_flat_equals_numpy(name, vectors, rows, queries):
    searched = GpuIndex.flat(vectors, device="cuda")
    answers = KnnSearcher(vectors, candidates=searched).search(queries, k=10, allowed=filters()[name])
    ids, _ = brute_force(rows, queries, 10, filters()[name])
    assert [[id for id, _ in answer] for answer in answers] == ids.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not faiss_on_gpu(), reason="the installed FAISS has no GPU")
@pytest.mark.parametrize("name", filters())
def test_gpu_index_ivf_reaches_the_recall(name, vectors, rows, queries, tmp_path):
    plan = plan_for("ivf-sq8", rows=ROWS, dim=DIM, budget=Budget())
    plan = replace(plan, parameters={**plan.parameters, "nprobe": 60, "refine": 4})
    write_ann(tmp_path / "ann", vectors, plan=plan)
    searched = open_searcher(vectors, device="cuda", plan=plan, path=tmp_path / "ann")
    answers = KnnSearcher(vectors, candidates=searched).search(queries, k=10, allowed=filters()[name])
    ids, _ = brute_force(rows, queries, 10, filters()[name])
    found = [len({id for id, _ in answer} & set(known)) for answer, known in zip(answers, ids, strict=True)]
    assert sum(found) >= 0.95 * ids.size


@pytest.mark.gpu
@pytest.mark.skipif(not has_cagra(), reason="the installed FAISS has no GPU, or no CAGRA")
@pytest.mark.parametrize("name", filters())
def test_gpu_index_graph_reaches_the_recall(name, vectors, rows, queries, monkeypatch):
    monkeypatch.setattr(index_file, "GRAPH_ROWS", 1_000)
    covered = ROWS - 500
    plan = plan_for("hnsw-sq8", rows=covered, dim=DIM, budget=Budget())
    plan = replace(plan, parameters={**plan.parameters, "refine": 4})
    searched = open_searcher(vectors, device="cuda", plan=plan, path=Path("none is read"))
    assert searched is not None
    assert (searched.rows, searched.exact) == (covered, False)
    answers = KnnSearcher(vectors, candidates=searched).search(queries, k=10, allowed=filters()[name])
    _, scores = brute_force(rows, queries, 10, filters()[name])
    lowest = scores[:, -1:]  # of equal rows any is as good
    found = [score >= low for answer, [low] in zip(answers, lowest, strict=True) for _, score in answer]
    assert np.mean(found) >= 0.95
