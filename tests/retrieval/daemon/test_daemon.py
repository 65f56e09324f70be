"""The daemon as a process of its own, with a fake encoder: same output, and what happens when something goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm2clip.common.daemon_client import ask
from llm2clip.common.daemon_socket import DaemonError, receive, send, socket_path
from llm2clip.indexer import Selection, remove_images
from tests.retrieval.conftest import Corpus

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")

HERE = Path(__file__).parent
# In the process itself the same fake answers, for a comparison; its absence shows whether the daemon answered.
PROGRAM = """
import sys
sys.argv[0] = "llm2clip-search"
from llm2clip.common import entrypoint
if "--no-daemon" in sys.argv:
    import fake_daemon
def start(module, *, daemon=None, start=entrypoint.start):
    start(module, daemon="fake_daemon")
entrypoint.start = start
entrypoint.search()
"""

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for sockets; those of pytest have paths that are too long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        monkeypatch.setenv("PYTHONPATH", str(HERE))
        monkeypatch.setenv("LLM2CLIP_DAEMON", "1")
        monkeypatch.setenv("COLUMNS", "80")
        yield Path(name)
        with contextlib.suppress(DaemonError, OSError):
            if running := ask("status"):
                os.kill(running["process"], signal.SIGKILL)


def started(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=os.environ | variables,
    )


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs ``llm2clip-search`` in a process of its own."""

    def once(
        *arguments: object, cwd: Path | None = None, stdin: bytes = b"", **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        process = started(*arguments, cwd=cwd, **variables)
        out, errors = process.communicate(stdin, timeout=100)
        return subprocess.CompletedProcess(arguments, process.returncode, out, errors)

    return once


def process() -> int:
    answer = ask("status")
    assert answer is not None
    return int(answer["process"])


def searches() -> int:
    answer = ask("status")
    return 0 if answer is None else int(answer["searches"])


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def test_daemon_prints_what_the_command_prints_without_it(corpus: Corpus, run: Run, tmp_path: Path):
    (tmp_path / "queries.txt").write_text("blue\nred\n")
    index = ("--index", corpus.index)
    cases: tuple[tuple[object, ...], ...] = (
        ("red", *index),
        ("red", "--json", *index),
        ("2*red", "+", "image:images/cold/blue.png", "--paths", *index),
        ("--queries", "queries.txt", "--each", "green", *index),
        ("红色", "-k", 2, "--where", "width < 9999", *index),
        ("red", "--where", "width >", *index),
        ("--json", "--paths", "red"),
    )
    for number, case in enumerate(cases, start=1):
        with_daemon = run(*case, cwd=tmp_path)
        without = run(*case, "--no-daemon", cwd=tmp_path)
        assert (with_daemon.returncode, with_daemon.stderr) == (without.returncode, without.stderr), case
        assert with_daemon.stdout == without.stdout, case
        assert searches() == number
    assert process() == process()


def test_daemon_reads_standard_input_and_environment(corpus: Corpus, run: Run):
    found = run("--queries", "-", "--json", stdin=b"red\nblue\n", LLM2CLIP_INDEX=str(corpus.index))
    first = [json.loads(line)["hits"][0]["key"] for line in found.stdout.splitlines()]
    assert first == ["warm/red.png", "cold/blue.png"]
    assert searches() == 1
    narrow = run("red", "--index", corpus.index, COLUMNS="40").stdout.decode()
    wide = run("red", "--index", corpus.index, COLUMNS="100").stdout.decode()
    assert max(map(len, narrow.splitlines())) <= 40
    assert narrow != wide
    assert searches() == 3


def test_daemon_notices_a_changed_index(corpus: Corpus, run: Run):
    before = run("red", "-k", 1, "--paths", "--index", corpus.index)
    assert before.stdout.decode() == f"{corpus.folder}/warm/red.png\n"
    remove_images(corpus.index, Selection(keys=("warm/red.png",)))
    after = run("red", "-k", 1, "--paths", "--index", corpus.index)
    assert after.stdout == run("red", "-k", 1, "--paths", "--index", corpus.index, "--no-daemon").stdout
    assert after.stdout != before.stdout
    shutil.rmtree(corpus.index)
    gone = run("red", "--index", corpus.index)
    assert (gone.stdout, b"error: " in gone.stderr) == (b"", True)
    assert searches() == 3


def test_daemon_that_was_killed_is_replaced(corpus: Corpus, run: Run):
    run("red", "--index", corpus.index)
    killed = process()
    os.kill(killed, signal.SIGKILL)
    assert os.path.exists(socket_path())
    found = run("red", "-k", 1, "--paths", "--index", corpus.index)
    assert found.stdout.decode() == f"{corpus.folder}/warm/red.png\n"
    assert process() != killed


def test_daemon_killed_while_it_searches_leaves_the_search_to_the_command(
    corpus: Corpus, run: Run, tmp_path: Path
):
    started_file, go_on = tmp_path / "started", tmp_path / "go-on"
    waiting = started(
        "wait", "--index", corpus.index, "--verbose", STARTED=str(started_file), GO_ON=str(go_on)
    )
    wait_for(started_file)
    os.kill(process(), signal.SIGKILL)
    _, errors = waiting.communicate(timeout=100)
    # Here nobody knows the fake encoder.
    assert errors.startswith(b"searching without a daemon: the other end is gone\nerror: ")


def test_daemon_of_other_conditions_is_replaced(corpus: Corpus, run: Run):
    run("red", "--index", corpus.index)
    first = process()
    run("red", "--index", corpus.index, OMP_NUM_THREADS="3")
    assert process() != first


def test_daemon_short_of_memory_ends_and_the_command_searches(corpus: Corpus, run: Run):
    found = run("no memory", "--index", corpus.index, "--verbose")
    assert found.stderr.startswith(b"searching without a daemon: MemoryError: there is none\n")
    assert ask("status") is None


def test_daemon_serves_several_at_once(corpus: Corpus, run: Run):
    run("red", "--index", corpus.index)
    names = ("red", "green", "blue", "black") * 2
    together = [started(name, "-k", 1, "--paths", "--index", corpus.index) for name in names]
    found = [each.communicate(timeout=100)[0].decode().rpartition("/")[2] for each in together]
    assert found == [f"{name}.png\n" for name in names]
    assert searches() == 9


def test_daemon_drops_the_search_of_a_client_that_is_interrupted(corpus: Corpus, run: Run, tmp_path: Path):
    begun = tmp_path / "begun"
    waiting = started("wait", "--index", corpus.index, STARTED=str(begun), GO_ON=str(tmp_path / "never"))
    wait_for(begun)
    waiting.send_signal(signal.SIGINT)
    assert waiting.communicate(timeout=100) == (b"", b"interrupted\n")
    assert waiting.returncode == 130
    assert run("red", "-k", 1, "--paths", "--index", corpus.index).stdout.endswith(b"red.png\n")
    assert searches() == 2


def test_daemon_is_not_held_up_by_a_reader(corpus: Corpus, run: Run):
    (queries := corpus.folder / "queries.txt").write_text("red\n" * 500)
    slow = started("--queries", queries, "-k", 8, "--json", "--index", corpus.index)
    assert slow.stdout is not None
    assert os.read(slow.stdout.fileno(), 1) == b"{"  # a pipe holds 64 kB, this is 1 MB
    assert run("red", "-k", 1, "--paths", "--index", corpus.index).stdout.endswith(b"red.png\n")
    assert searches() == 2
    assert len(slow.communicate(timeout=100)[0].splitlines()) == 500


def test_busy_daemon_is_not_waited_for(corpus: Corpus, run: Run, tmp_path: Path):
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    waiting = started(
        "wait", "-k", 1, "--paths", "--index", corpus.index, STARTED=str(begun), GO_ON=str(go_on)
    )
    wait_for(begun)
    other = run("red", "--index", corpus.index, "--verbose")
    assert other.stderr.startswith(b"searching without a daemon: it is busy\n")
    go_on.touch()
    assert waiting.communicate(timeout=100)[0].endswith(b".png\n")


def test_daemon_ends_when_idle(corpus: Corpus, run: Run):
    run("red", "--index", corpus.index, LLM2CLIP_DAEMON_IDLE="0.05")
    while os.path.exists(socket_path()):
        time.sleep(0.01)
    assert ask("status") is None


def test_daemon_survives_clients_that_talk_nonsense(corpus: Corpus, run: Run):
    run("red", "--index", corpus.index)
    for data in (b"", b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\5hello", b"\0\0\0\2{}"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(socket_path())
            connection.sendall(data)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(socket_path())
        send(connection, {"arguments": 3}, files=(0, 1, 2))
        assert receive(connection)[0]["is"] == "refused"
    assert run("red", "--index", corpus.index).returncode == 0
    assert searches() == 2


def test_daemon_option_shows_and_stops_it(corpus: Corpus, run: Run):
    assert run("--daemon", "status").stdout == b"no daemon runs\n"
    assert run("--daemon", "status").returncode == 1
    run("red", "--index", corpus.index)
    lines = run("--daemon", "status").stdout.decode().splitlines()
    assert lines[0] == f"process {process()} for 0 minutes, 1 searches"
    assert lines[1:3] == [f"keeps index {corpus.index}", "keeps encoder fake"]
    assert run("--daemon", "stop").returncode == 0
    while ask("status") is not None:
        time.sleep(0.01)
