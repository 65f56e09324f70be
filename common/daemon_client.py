"""Hand a command over to a daemon that has its modules and models in memory, or say that it has to run here.

The daemon gets arguments, environment, working directory and the three standard streams themselves, and runs the same
function as this process would. Whatever goes wrong, the command runs here; ``--verbose`` says why. This file is on
the way of every search: it imports little.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from llm2clip.common.daemon_socket import (
    DaemonError,
    receive,
    require_own_peer,
    send,
    socket_path,
    start_conditions,
)

VARIABLE = "LLM2CLIP_DAEMON"
"""``0``: never use a daemon; ``1``: start one from scripts too. Otherwise one is started from terminals only."""
IDLE_VARIABLE = "LLM2CLIP_DAEMON_IDLE"
"""Seconds without a search after which a daemon ends."""
IDLE_SECONDS = 15 * 60
HERE = frozenset(["--no-daemon", "--daemon", "--interactive", "-i", "--help", "-h", "--version"])
"""Options of commands that run in the process of the user."""
_PATIENCE = 2.0
"""Seconds until a daemon that is busy with another search is not waited for."""
_START = 20.0
"""Seconds until one that was just started is not waited for."""


class _EndsError(DaemonError):
    """The daemon ends; another can be started."""


def hand_over(arguments: Sequence[str], *, module: str) -> int | None:
    """Have the daemon run a command.

    Args:
        arguments: Those of the command, without its name.
        module: Dotted name of the module that is the daemon: started with ``-m`` where none runs.

    Returns:
        Exit status of the command; None: run it here.
    """
    options = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if not options or not HERE.isdisjoint(option.partition("=")[0] for option in options):
        return None
    try:
        if os.environ.get(VARIABLE) == "0":
            raise DaemonError(f"{VARIABLE} is 0")
        path, start = socket_path(), _may_start()
        if connection := _connect(path):
            with suppress(_EndsError):
                return _run(connection, arguments)
        return _run(_start(path, module=module, allowed=start), arguments)
    except (DaemonError, OSError, LookupError, TypeError, ValueError) as error:
        if "--verbose" in options:
            print(f"searching without a daemon: {error}", file=sys.stderr)
        return None


def ask(question: str) -> dict[str, Any] | None:
    """What a running daemon says to ``status`` or ``stop``; None: none runs.

    Raises:
        DaemonError, OSError: It cannot be asked.
    """
    connection = _connect(socket_path())
    if connection is None:
        return None
    with connection:
        send(connection, {"ask": question})
        return receive(connection)[0]


def _may_start() -> bool:
    """Whether a daemon may be started: somebody is at a terminal, or asked for it."""
    told = os.environ.get(VARIABLE)
    return told == "1" or (not told and "CI" not in os.environ and sys.stderr.isatty())


def _connect(path: str) -> socket.socket | None:
    """A connection to the daemon; None if none listens: not started, ended, or killed."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(path)
        require_own_peer(connection)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


def _start(path: str, *, module: str, allowed: bool) -> socket.socket:
    """Start a daemon, and connect to it at once: it inherits the socket, and answers when it is up.

    It also inherits the lock, so that there is one daemon, and what a killed one left can be removed.
    """
    if not allowed:
        raise DaemonError(f"none runs, and it is started from terminals only, or with {VARIABLE}=1")
    import fcntl
    import subprocess
    import time

    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(f"{path}.lock", flags, 0o600)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for _ in range(100):  # another process starts one, or one is about to end
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
                if connection := _connect(path):
                    return connection
        else:
            raise DaemonError("another one runs, and does not answer")
        if os.path.lexists(path):
            os.unlink(path)
        before = os.umask(0o177)
        try:
            listening.bind(path)
        finally:
            os.umask(before)
        listening.listen(16)
        log = os.open(f"{path}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(listening.fileno()), str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listening.fileno(), lock),
                start_new_session=True,
            ).returncode = 0  # it outlives this process: nothing is to be waited for
        finally:
            os.close(log)
        connection = _connect(path)
        if connection is None:
            raise DaemonError("it did not start")
        connection.settimeout(_START)
        return connection
    finally:
        listening.close()
        os.close(lock)


def _run(connection: socket.socket, arguments: Sequence[str]) -> int:
    """Exit status of a command that the daemon ran.

    Raises:
        DaemonError: It was not run, and printed nothing on standard output.
    """
    with connection:
        send(connection, _request(arguments), files=(0, 1, 2))
        printing = False
        while True:
            try:
                message, _ = receive(connection)
            except TimeoutError:
                raise DaemonError("it is busy") from None
            except DaemonError:
                if not printing:
                    raise
                print("error: the search daemon ended while it printed; search again", file=sys.stderr)
                return 2
            match message.get("is"):
                case "begun":
                    connection.settimeout(None)
                case "printing":
                    printing = True
                case "ended":
                    return int(message["status"])
                case "ends":
                    raise _EndsError(str(message.get("why")))
                case _:
                    raise DaemonError(str(message.get("why")))


def _request(arguments: Sequence[str]) -> dict[str, Any]:
    mask = os.umask(0o077)
    os.umask(mask)
    return {
        "program": os.path.basename(sys.argv[0]),
        "arguments": list(arguments),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "mask": mask,
        "streams": [[stream.encoding, stream.errors] for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "conditions": start_conditions(),
    }
