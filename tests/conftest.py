"""What every test runs under: one thread, no network, a data home of its own."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before anything imports torch or faiss: tests share the machine, and one thread makes sums repeatable.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LLM2CLIP_DAEMON"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

TESTS = Path(__file__).parent
SLOW = {
    "": "contributing docs import_cost interrupts packaging trips",
    "benchmarks": "index report text_side",
    "encoders": "baseline_memory baseline_table clip contract export families guard hostile_weights identity "
    "language_sizes llm2clip long_clip memory published quantise registry sentence text tower_memory towers",
    "eval/loaders": "chinese english long_captions multilingual",
    "eval": "bootstrap classification classify leaderboard make_eval paired_tests rank_positions recall run",
    "indexer": "bad_images bitrot build cli cli_changes corpora crash damage encode_batches exporting "
    "faults hostile_ann journal lifecycle manage memory nearest_neighbors planner random_changes sandbox search "
    "together trust",
    "retrieval": "cli demo sample",
    "retrieval/daemon": "daemon",
    "retrieval/server": "app page robustness",
    "train": "align align_processes caption_features cc_processes cc_run cli export loop nano",
    "golden": "d_llm2vec g_stage2",
}
SLOW_FILES = frozenset(
    f"{folder}/test_{name}.py".lstrip("/") for folder, names in SLOW.items() for name in names.split()
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


@pytest.fixture(scope="session", autouse=True)
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A data home for what several tests share, before ``data_home`` takes its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM2CLIP_HOME", str(tmp_path_factory.mktemp("shared-home")))
        yield


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
