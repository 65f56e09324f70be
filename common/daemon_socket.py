"""The Unix socket between a command and the daemon that keeps its models in memory: place, messages, peers.

A message is a JSON object behind its length as four bytes, most significant first. Both ends belong to one user: the
socket lies in a folder that nobody else can enter, and the user of the other end is compared.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

PROTOCOL = 1
"""Changes with the meaning of messages; their framing stays."""

_LENGTH = struct.Struct("!I")
_MOST_BYTES = 16 * 2**20
"""Longest message; arguments and environment of a process have a few MB."""
_LONGEST_PATH = 103
"""Bytes of a socket's path: 107 on Linux, 103 on macOS."""
_AT_START = (
    "CUDA_ DYLD_ GLIBC_ GOMP_ HF_ HIP_ HUGGINGFACE_ KMP_ LD_ MALLOC_ MKL_ NUMEXPR_ OMP_ OPENBLAS_ PYTHON PYTORCH_ "
    "RAYON_ TOKENIZERS_ TORCH TRANSFORMERS_ VECLIB_ XDG_CACHE_"
)
"""Beginnings of variables that Python and libraries read once, when they start."""
_PREFIXES = tuple(_AT_START.split())


class DaemonError(Exception):
    """The daemon cannot be used; the message says why."""


def socket_path() -> str:
    """Where the socket of this installation's daemon lies; makes the folder.

    Installations, containers and users do not share a daemon.

    Raises:
        DaemonError: There are no Unix sockets here, or no folder that only this user can enter.
    """
    if not hasattr(socket, "AF_UNIX") or not hasattr(socket, "send_fds"):
        raise DaemonError("this platform has no Unix sockets")
    root = os.stat("/")
    parts = [sys.executable, sys.prefix, __file__, _mounts(), str(root.st_dev), str(root.st_ino)]
    name = f"{zlib.crc32(os.fsencode(chr(0).join(parts))):08x}.sock"
    places = (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp")
    for place in filter(None, places):
        folder = os.path.join(place, f"llm2clip-{os.geteuid()}")
        path = os.path.join(folder, name)
        if os.path.isabs(path) and len(os.fsencode(path)) <= _LONGEST_PATH and _is_private(folder):
            return path
    raise DaemonError("there is no folder for its socket that only this user can enter")


def _mounts() -> str:
    """The mount namespace: in another one, the same path may be another file."""
    try:
        return os.readlink("/proc/self/ns/mnt")
    except OSError:
        return ""


def _is_private(folder: str) -> bool:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError:
        return False
    found = os.lstat(folder)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def start_conditions() -> dict[str, Any]:
    """What a process cannot change once it runs: a daemon that started under other conditions is not used."""
    return {
        "protocol": PROTOCOL,
        "encoding": sys.getfilesystemencoding(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "variables": {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)},
    }


def require_own_peer(connection: socket.socket) -> None:
    """Refuse a peer of another user; where the system does not tell, the folder of the socket is what protects.

    Raises:
        DaemonError: It is another user's.
    """
    if hasattr(socket, "SO_PEERCRED"):
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        user = struct.unpack("3i", data)[1]
    elif sys.platform == "darwin" or "bsd" in sys.platform:
        try:
            data = connection.getsockopt(0, 1, 76)  # LOCAL_PEERCRED: version, user, groups
        except OSError:
            return
        user = struct.unpack_from("Ii", data)[1]
    else:
        return
    if user != os.geteuid():
        raise DaemonError(f"it belongs to another user ({user})")


def send(connection: socket.socket, message: Mapping[str, Any], *, files: Sequence[int] = ()) -> None:
    """Send a message, and open files with it.

    Raises:
        OSError: The other end is gone.
    """
    data = json.dumps(message).encode(
        "ascii"
    )  # lone surrogates of file names are escaped, and come back as such
    length = _LENGTH.pack(len(data))
    if files:
        socket.send_fds(connection, [length], list(files))
        connection.sendall(data)
    else:
        connection.sendall(length + data)


def receive(connection: socket.socket, *, files: int = 0) -> tuple[dict[str, Any], list[int]]:
    """The next message, and the open files that came with it, at most ``files``.

    Raises:
        DaemonError: The other end is gone, or this is no message.
        TimeoutError: Nothing came in the time that the connection was given.
    """
    received: list[int] = []
    try:
        begin = b""
        if files:
            begin, received, _, _ = socket.recv_fds(connection, _LENGTH.size, files)
            for each in received:
                os.set_inheritable(each, False)
        begin += _exactly(connection, _LENGTH.size - len(begin))
        (length,) = _LENGTH.unpack(begin)
        if length > _MOST_BYTES:
            raise DaemonError(f"a message of {length:,} bytes came, expected at most {_MOST_BYTES:,}")
        message = json.loads(_exactly(connection, length))
        if not isinstance(message, dict):
            raise DaemonError(f"a message must be a JSON object, got {type(message).__name__}")
    except (DaemonError, OSError, ValueError, RecursionError) as error:
        for each in received:
            os.close(each)
        if isinstance(error, DaemonError | TimeoutError):
            raise
        raise DaemonError(f"the connection broke: {error}") from error
    return message, received


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise DaemonError("the other end is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
