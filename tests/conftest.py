"""What every test runs under: one thread, no network, a data home of its own."""

import os
import socket
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before anything imports torch or faiss: tests share the machine, and one thread makes sums repeatable.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

TESTS = Path(__file__).parent
SLOW_FILES = frozenset(
    (
        "test_docs.py",
        "test_imports.py",
        "test_interrupts.py",
        "test_packaging.py",
        "benchmarks/test_index.py",
        "encoders/test_baseline_memory.py",
        "encoders/test_baseline_table.py",
        "encoders/test_clip.py",
        "encoders/test_contract.py",
        "encoders/test_export.py",
        "encoders/test_families.py",
        "encoders/test_hostile_weights.py",
        "encoders/test_llm2clip.py",
        "encoders/test_long_clip.py",
        "encoders/test_memory.py",
        "encoders/test_published.py",
        "encoders/test_quantise.py",
        "encoders/test_sentence.py",
        "encoders/test_text.py",
        "encoders/test_tower_memory.py",
        "encoders/test_towers.py",
        "eval/loaders/test_chinese.py",
        "eval/loaders/test_english.py",
        "eval/loaders/test_long_captions.py",
        "eval/loaders/test_multilingual.py",
        "eval/test_bootstrap.py",
        "eval/test_classification.py",
        "eval/test_leaderboard.py",
        "eval/test_make_eval.py",
        "eval/test_nano.py",
        "eval/test_nano_controls.py",
        "eval/test_paired_tests.py",
        "eval/test_rank_positions.py",
        "eval/test_recall.py",
        "eval/test_run.py",
        "indexer/test_build.py",
        "indexer/test_cli.py",
        "indexer/test_cli_changes.py",
        "indexer/test_corpora.py",
        "indexer/test_crash.py",
        "indexer/test_damage.py",
        "indexer/test_filtered_search.py",
        "indexer/test_lifecycle.py",
        "indexer/test_nearest_neighbors.py",
        "indexer/test_planner.py",
        "indexer/test_random_changes.py",
        "indexer/test_together.py",
        "retrieval/test_cli.py",
        "retrieval/test_demo.py",
        "retrieval/test_sample.py",
        "train/test_binding.py",
        "train/test_caption_features.py",
        "train/test_image_batches.py",
        "train/test_recipe.py",
        "golden/test_d_llm2vec.py",
    )
)
"""Files that take more than a few seconds; ``--fast`` leaves them out."""

# No deadline: a loaded machine is not a failing test. Derandomised: a commit passes or fails, without flicker.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")
    parser.addoption("--fast", action="store_true", help="leave out the files of SLOW_FILES (make check)")
    parser.addoption(
        "--golden-root", metavar="FOLDER", help="folder of golden cases to run (default: our copies)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        slow = {item for item in items if item.path.relative_to(TESTS).as_posix() in SLOW_FILES}
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
    skipped = {} if config.getoption("--slow") else {"slow": "takes minutes: pass --slow"}
    if any("gpu" in item.keywords for item in items) and not _has_cuda():
        skipped["gpu"] = "needs a CUDA device: run benchmarks/gpu/run.sh"
    for item in items:
        for mark, reason in skipped.items():
            if mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data home of the test's own: nothing reads or writes the indexes of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("LLM2CLIP_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this machine in no test; loopback is allowed, for servers under test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if host != "localhost" and not host.startswith("127.") and host != "::1":
                raise OSError(f"a test tried to connect to {address!r}; tests use no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
