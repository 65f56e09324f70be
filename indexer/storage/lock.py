"""The lock of an index: one writer at a time, on one machine or on several that share its folder.

``lock`` is held by ``flock``, which the system releases when the process ends. Some file systems have none, or have it
within a machine only; so a writer also creates the file ``writer``, which says who it is, and renews its time while it
works. One that was not renewed for a minute, or whose process ended on this machine, counts for nothing.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from llm2clip.common.files import create_new, open_regular
from llm2clip.indexer.core.errors import IndexConflictError, IndexWriteError

LOCK = "lock"
OWNER = "writer"
BEAT_SECONDS = 5.0
"""How often a writer renews the time of its file."""
STALE_SECONDS = 60.0
"""A writer that was not heard of for this time does not count."""
_WRITTEN_SECONDS = 2.0
"""After this, an empty file is of a writer that was killed between creating and writing it."""
_MAX_BYTES = 4096
_NONCE = os.urandom(8).hex()
_TRIES = 3


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the lock of an index.

    Raises:
        IndexConflictError: another process holds it, or a process on another machine.
        IndexWriteError: the folder cannot be written.
    """
    try:
        opened = open_regular(folder / LOCK, writable=True)
    except OSError as error:
        raise IndexWriteError(_read_only(folder, error)) from error
    with opened as file:
        _claim(folder, file, alone=_locks(file, folder))
        done = threading.Event()
        beat = threading.Thread(target=_beat, args=(folder / OWNER, done), name="lock", daemon=True)
        beat.start()
        try:
            yield
        finally:
            done.set()
            beat.join()
            if _read(folder / OWNER) == _me():
                with suppress(OSError):
                    os.unlink(folder / OWNER)


def check_lock(folder: Path) -> None:
    """Refuse to go on writing if another process took the lock, because it had not heard of this one for long.

    Raises:
        IndexConflictError: another process writes.
    """
    if (other := _read(folder / OWNER)) is not None and other != _me():
        raise IndexConflictError(
            f"another process is writing {folder} ({_name(other)}), as this one was not heard of for over "
            f"{STALE_SECONDS:.0f} seconds: nothing was committed. Run the command again"
        )


def _read_only(folder: Path, error: OSError) -> str:
    return (
        f"cannot write the index at {folder}: {error.strerror or error}. It can be searched; to change it, "
        "copy it to a writable folder"
    )


def _locks(file: IO[bytes], folder: Path) -> bool:
    """Lock the file; False on a file system without locks."""
    try:
        _flock(file)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            other = _read(folder / OWNER)
            raise IndexConflictError(_busy(folder, _name(other) if other else "")) from error
        return False
    return True


def _claim(folder: Path, file: IO[bytes], *, alone: bool) -> None:
    """Create the file of the writer; ``alone``: no other process of this machine writes."""
    path = folder / OWNER
    mine = json.dumps(_me()).encode()  # before the file is there: one that is empty is waited for
    for _ in range(_TRIES):
        try:
            with create_new(path) as created:
                created.write(mine)
                os.fsync(created.fileno())  # after a power loss it says whose it was, and is not waited for
            return
        except FileExistsError:
            other = _read(path)
            if empty := alone and _is_empty(path):
                time.sleep(_WRITTEN_SECONDS)
                other, empty = _read(path), _is_empty(path)
        except OSError as error:
            raise IndexWriteError(_read_only(folder, error)) from error
        # Of a process of this machine, which the lock says has ended; or killed before it could say whose it was.
        ended = alone and (empty or (other is not None and other["machine"] == _machine()))
        age = _now(file) - _renewed(path)
        if not ended and age < STALE_SECONDS:
            who = _name(other) if other is not None else "unknown"
            left = min(STALE_SECONDS, STALE_SECONDS - age)
            raise IndexConflictError(
                f"{_busy(folder, who)}. If no process writes it, wait {left:.0f} seconds or delete {path}"
            )
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise IndexWriteError(_read_only(folder, error)) from error
    raise IndexConflictError(_busy(folder, ""))


def _busy(folder: Path, who: str) -> str:
    shown = f" ({who})" if who else ""
    return f"another process is writing {folder}{shown}: wait for it, or stop it, then run the command again"


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        if _read(path) == _me():
            with suppress(OSError):
                os.utime(path)


def _read(path: Path) -> Mapping[str, str] | None:
    """Who writes, according to a file; None if there is none, or it is none of ours."""
    try:
        with open_regular(path) as file:
            found = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    wanted = isinstance(found, dict) and found.keys() == _me().keys()
    return found if wanted and all(isinstance(value, str) for value in found.values()) else None


def _is_empty(path: Path) -> bool:
    with suppress(OSError):
        return path.lstat().st_size == 0
    return False


def _me() -> dict[str, str]:
    return {"machine": _machine(), "host": platform.node(), "process": str(os.getpid()), "nonce": _NONCE}


def _name(owner: Mapping[str, str]) -> str:
    return f"process {owner['process']:.20} on {owner['host']:.60}"


@cache
def _machine() -> str:
    """What two processes have in common that share ``flock``: a running system, also from within containers."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return platform.node()


def _now(file: IO[bytes]) -> float:
    """The time of the file system, which may be that of another machine."""
    with suppress(OSError, TypeError):
        os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime
    return time.time()


def _renewed(path: Path) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _flock(file: IO[bytes]) -> None:
    if os.name == "nt":
        import msvcrt

        locking: Any = msvcrt
        file.seek(0)
        locking.locking(file.fileno(), locking.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
