"""Planning, building and tuning ANN indexes; sizes against files, answers against brute force."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm2clip.indexer import Index, IndexDamagedError, IndexerError
from llm2clip.indexer.ann.index_types import APPROXIMATE, plan_for, unsupported_reason
from llm2clip.indexer.ann.ivf_hnsw import FaissAnnIndex
from llm2clip.indexer.ann.nearest_neighbors import KnnSearcher
from llm2clip.indexer.ann.plan import Alternative, Budget, BudgetError, Cost, Plan, parse_bytes
from llm2clip.indexer.planner import plan_index as planner
from llm2clip.indexer.planner.plan_index import BudgetPlanner, make_ann, plan_index, require_memory, write_ann
from llm2clip.indexer.planner.tune import exact_latency, sample_queries, tune
from llm2clip.indexer.storage.vector_segments import Vectors

from .material import clustered, write_index

ROWS, DIM = 3_000, 32


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return clustered(ROWS, DIM, seed=0).astype(np.float16)


@pytest.fixture(scope="module")
def vectors(rows: np.ndarray) -> Vectors:
    """In three segments."""
    return Vectors([rows[:1_000], rows[1_000:1_001], rows[1_001:]], dim=DIM)


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    """Queries that are not rows."""
    return clustered(200, DIM, seed=1)


def best(rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ rows.astype(np.float64).T), axis=1, kind="stable")[:, :k]


def built(path: Path, vectors: Vectors, kind: str, **parameters: int) -> FaissAnnIndex:
    """An ANN index of a type, searched with some parameters."""
    plan = plan_of(kind, len(vectors), DIM)
    write_ann(path, vectors, plan=plan)
    return FaissAnnIndex.read(path, plan=replace(plan, parameters={**plan.parameters, **parameters}))


def plan_of(kind: str, rows: int, dim: int) -> Plan:
    return plan_for(kind, rows=rows, dim=dim, budget=Budget(ram=10**9))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4 * 10**9),
        ("500 mb", 5 * 10**8),
        ("1.5G", 15 * 10**8),
        ("2GiB", 2 * 2**30),
        ("64KiB", 65_536),
        ("1024", 1024),
    ],
)
def test_parse_bytes_reads_sizes(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "4 bananas", "4iB", "1e9"])
def test_parse_bytes_refuses_other_text(text):
    with pytest.raises(IndexerError, match=r"expected a memory size like 4GB or 500MB, got "):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ram": 0}, "memory must be at least 1 byte, got 0"),
        ({"recall": 0.0}, "recall must be above 0 and at most 1, got 0"),
        ({"recall": 95.0}, "recall must be above 0 and at most 1, got 95"),
        ({"p95_ms": 0.0}, "latency must be above 0 ms, got 0"),
        ({"p95_ms": float("nan")}, "latency must be above 0 ms, got nan"),
    ],
)
def test_budget_refuses_invalid_values(wrong, message):
    with pytest.raises(IndexerError, match=message):
        Budget(**wrong)


def test_plan_survives_json():
    figures = Cost(bytes=12, build_bytes=34, recall=0.96, p50_ms=0.5, p95_ms=1.5)
    other = Alternative(kind="hnsw-sq8", figures=replace(figures, recall=None), why_not="too large")
    plan = replace(
        plan_of("ivf-sq8", ROWS, DIM),
        measured=figures,
        asked="200 text queries",
        why="best",
        considered=(other,),
    )
    content = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(content) == plan
    # The manifest keeps the names of format 3.
    assert content["parameters"].keys() == {"lists", "probes", "seed", "train_rows"}
    graph = plan_of("hnsw-sq8", ROWS, DIM)
    assert graph.to_json()["parameters"].keys() == {"build_effort", "links", "probes", "seed", "train_rows"}
    assert Plan.from_json(graph.to_json()) == graph
    lines = plan.lines()
    assert lines[0] == "ivf-sq8 over 3,000 x 32: best"
    assert lines[3] == "measured:  12 bytes, recall@10 0.960, p50 0.50 ms, p95 1.50 ms (200 text queries)"
    assert lines[4] == "not hnsw-sq8: too large (12 bytes, p50 0.50 ms, p95 1.50 ms)"
    for broken in (
        {**content, "extra": 1},
        {**content, "budget": {"rum": 1}},
        {**content, "considered": [3]},
    ):
        with pytest.raises(IndexDamagedError, match="plan of the index has an invalid entry"):
            Plan.from_json(broken)


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("dim", [32, 96])
def test_estimate_cost_predicts_the_file_size(kind, dim, tmp_path):
    some = Vectors([clustered(4_000, dim, seed=2).astype(np.float16)], dim=dim)
    plan = plan_of(kind, 4_000, dim)
    write_ann(tmp_path / "ann", some, plan=plan)
    assert plan.predicted.bytes == pytest.approx((tmp_path / "ann").stat().st_size, rel=0.1)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_tune_reaches_the_recall_with_and_without_filters(kind, vectors, rows, texts, tmp_path):
    index = built(tmp_path / "ann", vectors, kind)
    assert index.problem() is None
    found = tune(index, vectors, sample_queries(vectors, texts[::2]), recall=0.95)
    index = built(tmp_path / "ann", vectors, kind, **found)
    search = KnnSearcher(vectors, candidates=index)
    asked = texts[1::2]
    for share in (None, 0.5, 0.1, 0.01):
        allowed = None if share is None else np.random.default_rng(3).random(ROWS) < share
        ids = np.arange(ROWS) if allowed is None else np.flatnonzero(allowed)
        truth = ids[best(rows[ids], asked, 10)]
        answers = search.search(asked, k=10, allowed=allowed)
        hits = [len(set(truth[n]) & {id for id, _ in answer}) for n, answer in enumerate(answers)]
        assert np.mean(hits) / 10 >= 0.93
        for answer, query in zip(answers, asked, strict=True):  # whatever was found has its exact score
            for id, score in answer:
                assert allowed is None or allowed[id]
                assert score == np.float32((rows[id].astype(np.float64) * query).sum())


def test_knn_searcher_finds_rows_newer_than_the_ann_index(vectors, rows, texts, tmp_path):
    covered = Vectors([rows[:2_000]], dim=DIM)
    index = built(tmp_path / "ann", covered, "ivf-sq8", nprobe=10**6, refine=8)
    search = KnnSearcher(vectors, candidates=index)
    answers = search.search(texts, k=10)
    assert [[id for id, _ in answer] for answer in answers] == best(rows, texts, 10).tolist()
    steps = search.explain()
    assert steps[0].startswith("the ANN index proposes 80 of its 2,000 rows for 10 hits")
    assert steps[1] == "exact scan of the 1,000 rows added since the ANN index was built"
    allowed = np.arange(ROWS) % 3 == 0
    assert search.explain(allowed=allowed) == [
        "1,000 of 3,000 rows are allowed (filter, tombstones)",
        "exact scan of the 1,000 allowed rows: at most 20,000 rows or 2% of the ANN index are allowed",
    ]


def test_knn_searcher_finds_more_hits_than_the_probed_lists_hold(vectors, rows, texts, tmp_path):
    narrow = built(tmp_path / "ann", vectors, "ivf-sq8", nprobe=1, refine=1)
    search = KnnSearcher(vectors, candidates=narrow)
    [answer] = search.search(texts[:1], k=1_500)
    assert [id for id, _ in answer] == best(rows, texts[:1], 1_500)[0].tolist()


def test_sample_queries_have_ground_truth(vectors, rows, texts):
    for given in (texts, None):
        asked = sample_queries(vectors, given)
        assert np.array_equal(np.sort(asked.truth), np.sort(best(rows, asked.queries, 10)))
        np.testing.assert_allclose(np.linalg.norm(asked.queries, axis=1), 1, atol=1e-6)
        assert asked.recall(asked.truth) == 1
        assert asked.recall(asked.truth[:, :5]) == 0.5
        halves = asked.half(0), asked.half(1)
        assert not {q.tobytes() for q in halves[0].queries} & {q.tobytes() for q in halves[1].queries}
    assert sample_queries(vectors, texts).kind == "200 text queries"
    assert (
        sample_queries(vectors, None).kind
        == "800 stand-in queries, each the mean of 3 image vectors: there are no captions"
    )


def test_plan_index_chooses_an_exact_scan_while_fast_enough(vectors, texts, tmp_path):
    plan = plan_index(vectors, budget=Budget(ram=10**9, p95_ms=10_000), queries=texts)
    assert (plan.kind, plan.exact, plan.why) == ("flat-fp16-ip", True, "an exact scan is fast enough")
    made = make_ann(tmp_path / "none", vectors, plan=plan, queries=texts)
    assert not (tmp_path / "none").exists()
    assert made.measured is not None
    assert (made.measured.recall, made.measured.bytes) == (1.0, ROWS * DIM * 2)
    # A recall of 1 has no other way.
    slow = plan_index(vectors, budget=Budget(ram=10**9, p95_ms=1e-6, recall=1.0), queries=texts)
    assert (slow.kind, slow.why) == ("flat-fp16-ip", "only an exact scan has a recall of 1")


def test_plan_index_chooses_the_first_type_within_budget(vectors, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "exact_latency", lambda *_, **__: 1e6)
    plan = plan_index(vectors, budget=Budget(ram=10**9, p95_ms=1e5), queries=texts)
    assert (plan.kind, plan.why) == ("ivf-sq8", "the first within the budget")
    assert [each.kind for each in plan.considered] == ["flat-fp16-ip", *APPROXIMATE[1:]]
    assert plan.considered[0].why_not == "p95 of 1150000.00 ms, target 100000"
    assert plan.considered[1].why_not == "not tried: ivf-sq8 is within the budget"
    made = make_ann(tmp_path / "ann", vectors, plan=plan, queries=texts)
    assert made.measured is not None
    assert made.measured.recall is not None
    assert made.measured.recall >= 0.93
    assert made.measured.bytes == (tmp_path / "ann").stat().st_size
    assert {"nprobe", "refine"} <= made.parameters.keys()
    # The same rows and plan give the same file, which repair relies on.
    write_ann(tmp_path / "again", vectors, plan=made)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "ann").read_bytes()


@pytest.mark.parametrize("count", [2, 5, planner.EXACT_ROWS])
def test_plan_index_scans_few_rows_whatever_their_latency(count, rows):
    few = Vectors([rows[:count]], dim=DIM)
    plan = plan_index(few, budget=Budget(ram=10**9, p95_ms=1e-6))
    assert (plan.kind, plan.considered) == ("flat-fp16-ip", ())
    assert plan.why == "up to 1,000 vectors are always searched exactly"


def test_exact_latency_leaves_the_first_call_out(vectors, texts, monkeypatch):
    clock, calls = [0.0], []

    def search(self: KnnSearcher, queries: np.ndarray, *, k: int) -> list[object]:
        calls.append(len(queries))
        clock[0] += 9.0 if len(calls) == 1 else 0.001
        return []

    monkeypatch.setattr(KnnSearcher, "search", search)
    monkeypatch.setattr("llm2clip.indexer.planner.tune.perf_counter", lambda: clock[0])
    assert exact_latency(vectors, texts[:1], rows=2 * ROWS) == pytest.approx(2.0)


def test_plan_index_chooses_the_nearest_if_none_is_within_budget(vectors, texts, monkeypatch):
    for exact_ms, kinds in ((1e-4, ["flat-fp16-ip"]), (1e6, APPROXIMATE)):
        monkeypatch.setattr(planner, "exact_latency", lambda *_, ms=exact_ms, **__: ms)
        plan = plan_index(vectors, budget=Budget(ram=10**9, p95_ms=1e-5), queries=texts)
        assert plan.kind in kinds
        assert plan.why.startswith("none is within the budget, this is the closest: p95 of ")
        assert sorted([plan.kind, *(each.kind for each in plan.considered)]) == sorted(
            ["flat-fp16-ip", *APPROXIMATE]
        )
        assert all("target 1e-05" in each.why_not for each in plan.considered)


def test_require_memory_needs_only_the_number_of_vectors():
    flat = ROWS * DIM * 2
    require_memory(Budget(ram=flat), rows=ROWS, dim=DIM)
    require_memory(Budget(), rows=10**12, dim=DIM)
    with pytest.raises(BudgetError, match=r"the smallest type, flat-fp16-ip, needs 192 kB\."):
        require_memory(Budget(ram=flat - 1), rows=ROWS, dim=DIM)
    # Product quantisers of a million vectors want less than the vectors; with a recall of 1 only these will do.
    require_memory(Budget(ram=900_000_000), rows=10**6, dim=512)
    with pytest.raises(BudgetError, match=r"needs 1.0 GB"):
        require_memory(Budget(ram=900_000_000, recall=1.0), rows=10**6, dim=512)
    with pytest.raises(BudgetError, match=r"the smallest type, ivf-rabitq, needs 850 MB to build"):
        require_memory(Budget(ram=100_000_000), rows=10**6, dim=512)


def test_plan_index_and_make_ann_refuse_what_does_not_fit(vectors, texts, tmp_path, monkeypatch):
    says = "3,000 vectors of dimension 32 cannot be searched within {} kB of memory: the smallest type, flat-fp16-ip, "
    with pytest.raises(BudgetError, match=rf"{says.format(100)}needs 192 kB. Allow more with --ram"):
        plan_index(vectors, budget=Budget(ram=100_000), queries=texts)
    with pytest.raises(BudgetError, match=says.format(190)):
        plan_index(vectors, budget=Budget(ram=190_000, recall=1.0), queries=texts)
    monkeypatch.setattr(planner, "free_memory", lambda: 1_000)
    with pytest.raises(BudgetError, match=r"ivf-sq8 of 3,000 vectors needs .* of memory, 1.0 kB are free"):
        make_ann(tmp_path / "ann", vectors, plan=plan_of("ivf-sq8", ROWS, DIM), queries=texts)
    assert not (tmp_path / "ann").exists()


def test_unsupported_reason_names_the_reason():
    assert unsupported_reason("ivf-sq8", rows=100, dim=32) == "100 vectors are too few for inverted lists"
    assert (
        unsupported_reason("ivf-pq", rows=10_000, dim=33) == "dimension 33 cannot be split into equal parts"
    )
    assert unsupported_reason("ivf-rabitq", rows=10_000, dim=36) == "dimension 36 is not a multiple of 8"
    assert unsupported_reason("hnsw-sq8", rows=100, dim=33) is None


def test_faiss_ann_index_read_refuses_damaged_files(vectors, tmp_path):
    plan = plan_of("ivf-sq8", ROWS, DIM)
    path = tmp_path / "ann"
    write_ann(path, vectors, plan=plan)
    with pytest.raises(IndexDamagedError, match=r"ann does not fit the index: got .* expected .*2999"):
        FaissAnnIndex.read(path, plan=replace(plan, rows=2_999))
    path.write_bytes(b"x" * 100)
    with pytest.raises(IndexDamagedError, match=r"ann cannot be read by FAISS"):
        FaissAnnIndex.read(path, plan=plan)


def written(folder: Path, rows: np.ndarray, budget: Budget) -> Index:
    """An index of rows as a build with a budget would write it."""
    return write_index(folder, rows, planner=BudgetPlanner(budget=budget))


def test_index_of_a_budget_is_searched_explained_and_verified(rows, texts, tmp_path, monkeypatch):
    with monkeypatch.context() as slow:
        slow.setattr(planner, "exact_latency", lambda *_, **__: 1e6)
        made = written(tmp_path, rows, Budget(ram=10**9, p95_ms=1e-6))
    with made as index:
        kind = index.manifest.ann.plan["kind"]
        assert kind in APPROXIMATE
        truth = best(rows, texts, 10)
        hits = [
            len(set(truth[n]) & {hit.id for hit in answer})
            for n, answer in enumerate(index.search(texts, k=10))
        ]
        assert np.mean(hits) / 10 >= 0.9
        steps = index.explain()
        assert any(step.startswith("the ANN index proposes") for step in steps)
        assert any(step.startswith("measured:") and "mean of 3 image vectors" in step for step in steps)
        assert index.verify().ok
    with written(tmp_path / "flat", rows, Budget(ram=10**9, p95_ms=1e4)) as index:
        assert index.manifest.ann.plan["kind"] == "flat-fp16-ip"
        assert [hit.id for hit in index.search(texts[:1], k=10)[0]] == truth[0].tolist()
        assert index.verify().ok
