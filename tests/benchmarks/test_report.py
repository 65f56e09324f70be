"""The benchmarks' own arithmetic and report, and that they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent


def test_row_met_on_the_better_side_of_the_aim():
    from benchmarks.measuring import Row

    def met(value: float, aim: float | None, better: str) -> bool | None:
        return Row(benchmark="b", what="w", value=value, unit="ratio", aim=aim, better=better).met

    assert [met(value, 0.8, "higher") for value in (0.79, 0.8, 0.9)] == [False, True, True]
    assert [met(value, 1.3, "lower") for value in (1.2, 1.3, 1.31)] == [True, True, False]
    assert met(1, None, "lower") is None


def test_percentile_is_the_nearest_rank():
    from benchmarks.measuring import percentile

    values = list(range(101))[::-1]
    assert [percentile(values, percent) for percent in (0, 50, 95, 100)] == [0, 50, 95, 100]
    assert percentile([3.0], 95) == 3.0


def test_seconds_leaves_out_the_first_call():
    from benchmarks.measuring import seconds

    now = 0.0
    costs = iter([100.0, 1.0, 2.0, 3.0])

    def call() -> None:
        nonlocal now
        now += next(costs)

    assert seconds(call, times=3, clock=lambda: now) == [1.0, 2.0, 3.0]


def test_table_has_one_line_per_figure():
    from benchmarks.measuring import Row
    from benchmarks.report import table

    rows = [
        Row(benchmark="build", what="ratio", value=0.5, unit="ratio", aim=0.8, better="higher"),
        Row(benchmark="search", what="1,000 vectors: whole", value=2.04, unit="s", aim=2.5, note="of 15"),
        Row(benchmark="search", what="1,000 vectors: imports", value=1234.5, unit="s"),
    ]
    narrow = table(rows, columns=80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert [line.split() for line in narrow.splitlines() if line] == [
        ["build"],
        ["ratio", "0.5", "≥", "0.8", "missed"],
        ["search"],
        ["1,000", "vectors"],
        ["whole", "2.04", "s", "≤", "2.5", "met"],
        ["imports", "1,234", "s"],
        ["1", "of", "2", "aims", "met"],
        ["How", "each", "was", "measured:", "in", "120", "columns,", "or", "--json."],
    ]
    piped = table(rows, columns=None).splitlines()
    assert [line.split()[-2:] for line in piped if "whole" in line] == [["of", "15"]]


def test_report_names_machine_and_settings():
    from benchmarks.measuring import Row, machine
    from benchmarks.report import report

    rows = [
        Row(benchmark="build", what="ratio", value=0.5, unit="ratio", aim=0.8, better="higher"),
        Row(benchmark="cold", what="whole", value=2.04, unit="s", aim=2.5),
        Row(benchmark="cold", what="imports", value=1234.5, unit="s"),
    ]
    written = json.loads(json.dumps(report(rows, where=machine(), settings={"json": "x", "quick": True})))
    assert [row["met"] for row in written["rows"]] == [False, True, None]
    assert written["settings"] == {"quick": True}
    assert written["machine"]["cores"] == os.cpu_count()
    assert written["machine"]["versions"]["torch"]


def test_compare_takes_the_median_of_ratios_of_shared_figures():
    from benchmarks.against import compare, comparison_table

    def row(value: float) -> dict[str, object]:
        return {"value": value, "unit": "s", "better": "lower"}

    rounds = [
        ({("cold", "whole"): row(2.0), ("cold", "new"): row(1.0)}, {("cold", "whole"): row(1.0)}),
        ({("cold", "whole"): row(3.0)}, {("cold", "whole"): row(6.0)}),
        ({("cold", "whole"): row(9.0)}, {("cold", "whole"): row(6.0)}),
    ]
    (found,) = compare(rounds)
    assert (found.benchmark, found.what) == ("cold", "whole")
    assert (found.here, found.there, found.ratio) == (3.0, 6.0, 1.5)
    shown = comparison_table([found], commit="0123456789abcdef").splitlines()
    assert shown[-1].split() == ["whole", "3", "s", "6", "s", "1.50"]
    assert max(map(len, shown)) <= 80


def test_other_tree_refuses_an_unknown_commit(tmp_path):
    from benchmarks.against import other_tree

    with (
        pytest.raises(ValueError, match="no commit 'no-such-commit'"),
        other_tree("no-such-commit", tmp_path),
    ):
        pass


def test_write_random_index_is_searched_like_any_other(tmp_path):
    """The index that the ratio is measured on gives what a brute force over its vectors gives."""
    from benchmarks.search_ratio import ReadyEncoder, unit_rows, write_random_index
    from llm2clip.retrieval import Searcher

    queries = unit_rows(np.random.default_rng(5), 4)
    encoder = ReadyEncoder(queries)
    write_random_index(tmp_path / "i", count=3_000, encoder=encoder)
    with Searcher.open(tmp_path / "i", encoder=encoder) as searcher:
        stored = np.concatenate([np.load(file) for file in sorted((tmp_path / "i").glob("*.npy"))])
        for number, hits in enumerate(searcher.search([str(number) for number in range(4)], k=7)):
            scores = stored.astype(np.float64) @ queries[number]
            best = np.argsort(-scores)[:7]
            assert [hit.id for hit in hits] == best.tolist()
            assert hits[0].metadata == {"emoji": "🎲", "number": int(best[0])}


def test_text_of_length_has_the_wanted_tokens():
    from benchmarks.query_latency import text_of_length

    text = text_of_length(lambda texts: [len(texts[0].split())], "some words ", 7)
    assert len(text.split()) == 7


def run_gpu_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", **environment},
        timeout=120,
    )


def test_gpu_script_without_a_gpu_fails_in_one_line():
    before = set((ROOT / "benchmarks" / "results").glob("*"))
    done = run_gpu_script()
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no usable GPU" in done.stderr
    assert set((ROOT / "benchmarks" / "results").glob("*")) == before


def test_gpu_script_refuses_unknown_step_or_interpreter():
    unknown = run_gpu_script("fly")
    assert (unknown.returncode, "unknown step 'fly'" in unknown.stderr) == (2, True)
    missing = run_gpu_script(PYTHON="/no/python")
    assert (missing.returncode, "no interpreter '/no/python'" in missing.stderr) == (2, True)


def test_gpu_summary_reads_the_files_of_the_steps(tmp_path):
    from benchmarks.gpu.summary import summarise

    (tmp_path / "steps.tsv").write_text("tests\t0\t12\ntrain\t1\t600\n")
    (tmp_path / "throughput.json").write_text('[{"what": "x"}]')
    (tmp_path / "index.json").write_text('[{"what": "y"}]')
    summarise(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["steps"] == {
        "tests": {"passed": True, "seconds": 12},
        "train": {"passed": False, "seconds": 600},
    }
    assert (written["throughput"], written["index"]) == ([{"what": "x"}], [{"what": "y"}])
    assert written["date"].startswith("20")
    assert written["machine"]["versions"]["torch"]


@pytest.mark.slow
def test_benchmarks_all_run(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(tmp_path / "b.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert {row["benchmark"] for row in rows} == {
        "build",
        "cold search",
        "warm search",
        "search",
        "encode",
        "images",
        "texts",
        "quantised",
        "ingest",
        "filters",
        "metrics",
    }
    assert all(row["value"] > 0 for row in rows)
