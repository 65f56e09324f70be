"""Where the daemon's socket lies, whom it belongs to, and what may be said on it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm2clip.common import daemon_client, daemon_socket
from llm2clip.common.daemon_client import hand_over
from llm2clip.common.daemon_socket import (
    DaemonError,
    receive,
    require_own_peer,
    send,
    socket_path,
    start_conditions,
)

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        monkeypatch.setenv("TMPDIR", f"{name}/other")
        yield Path(name)


def test_socket_path_lies_in_a_folder_of_the_user_alone(folder: Path):
    path = Path(socket_path())
    assert path.parent == folder / f"llm2clip-{os.geteuid()}"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert socket_path() == str(path)


@pytest.mark.parametrize("trap", ["open", "link", "file"])
def test_socket_path_takes_no_folder_that_others_can_enter(folder: Path, trap: str):
    place = folder / f"llm2clip-{os.geteuid()}"
    if trap == "open":
        place.mkdir()
        place.chmod(0o750)
    elif trap == "link":
        (folder / "elsewhere").mkdir(mode=0o700)
        place.symlink_to("elsewhere")
    else:
        place.touch()
    (folder / "other").mkdir()
    assert Path(socket_path()).parent == folder / "other" / place.name


def test_socket_path_is_short_enough_to_bind(folder: Path, monkeypatch: pytest.MonkeyPatch):
    deep = folder / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setenv("TMPDIR", str(folder))
    path = socket_path()
    assert Path(path).parent.parent == folder
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)


def test_socket_path_is_another_for_another_python(folder: Path, monkeypatch: pytest.MonkeyPatch):
    first = socket_path()
    monkeypatch.setattr("sys.prefix", "/another/environment")
    assert socket_path() != first


def test_require_own_peer_refuses_another_user(monkeypatch: pytest.MonkeyPatch):
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        require_own_peer(one)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(DaemonError, match=rf"^it belongs to another user \({os.getuid()}\)$"):
            require_own_peer(one)


def test_receive_returns_what_was_sent_with_its_files(tmp_path: Path):
    message = {"name": os.fsdecode(b"\xff.jpg"), "text": "雪", "number": 3}
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other, open(tmp_path / "file", "wb") as file:
        send(one, message, files=(file.fileno(),))
        found, (copy,) = receive(other, files=3)
        assert (found, os.get_inheritable(copy)) == (message, False)
        os.write(copy, b"through the copy")
        os.close(copy)
    assert (tmp_path / "file").read_bytes() == b"through the copy"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the other end is gone"),
        (b"\0\0\0\5{}", "the other end is gone"),
        (b"\x7f\0\0\0", "a message of 2,130,706,432 bytes came, expected at most 16,777,216"),
        (b"\0\0\0\2[]", "a message must be a JSON object, got list"),
        (b"\0\0\0\2\x80\x04", "the connection broke: .*"),
    ],
)
def test_receive_refuses_what_is_no_message(data: bytes, problem: str):
    one, other = socket.socketpair(socket.AF_UNIX)
    with other:
        with one:
            one.sendall(data)
        with pytest.raises(DaemonError, match=f"^{problem}$"):
            receive(other)


def test_start_conditions_have_what_is_read_once(monkeypatch: pytest.MonkeyPatch):
    before = start_conditions()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("LLM2CLIP_INDEX", "x")
    after = start_conditions()
    assert after["variables"] == before["variables"] | {"OMP_NUM_THREADS": "7"}


@pytest.mark.parametrize(
    ("arguments", "told", "reason"),
    [
        (["cat", "--verbose"], "0", "LLM2CLIP_DAEMON is 0"),
        (
            ["cat", "--verbose"],
            "",
            "none runs, and it is started from terminals only, or with LLM2CLIP_DAEMON=1",
        ),
        (["cat", "--verbose"], "1", "this platform has no Unix sockets"),
        (["cat"], "0", None),
        (["--no-daemon", "cat", "--verbose"], "1", None),
        (["--daemon=status", "--verbose"], "1", None),
        (["--version", "--verbose"], "1", None),
        ([], "1", None),
    ],
)
def test_hand_over_says_why_a_command_runs_here(
    arguments: list[str],
    told: str,
    reason: str | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("LLM2CLIP_DAEMON", told)
    if reason and "platform" in reason:
        monkeypatch.delattr(daemon_socket.socket, "AF_UNIX")
    assert hand_over(arguments, module="no.such.module") is None
    assert capsys.readouterr().err == (f"searching without a daemon: {reason}\n" if reason else "")


def test_hand_over_runs_here_where_the_daemon_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LLM2CLIP_DAEMON", "1")
    assert hand_over(["cat", "--verbose"], module="no.such.module") is None
    assert capfd.readouterr().err.startswith("searching without a daemon: ")
    assert daemon_client.ask("status") is None
