"""This machine: files written whole or not at all, the folder of our data, versions of packages, free memory."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from io import FileIO
from pathlib import Path

from platformdirs import user_data_path

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for whoever writes to it


def open_regular(path: Path, *, writable: bool = False) -> FileIO:
    """Open a file that a stranger may have put there: a regular file, never a link, a pipe or a device. Unbuffered.

    Args:
        path: The file; links are followed in its folder, not in its name.
        writable: Whether it is opened for reading and writing, and created if it does not exist.

    Raises:
        OSError: There is no such file, or it is something else.
    """
    flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
    try:
        descriptor = _open(path, flags | _NO_LINK | _NO_WAIT)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # what systems say of a link
            raise OSError(error.errno, "it is a link, expected a regular file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(descriptor, "rb+" if writable else "rb", buffering=0)


def create_new(path: Path) -> FileIO:
    """Create a file that is not there yet, not even as a link, for writing. Unbuffered.

    Raises:
        OSError: There is something of that name, or it cannot be written.
    """
    descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK)
    return open(descriptor, "wb", buffering=0)


def regular_size(path: Path) -> int:
    """Size of a regular file in bytes; a link is none.

    Raises:
        OSError: There is no such file, or it is something else.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return found.st_size


def _open(path: Path, flags: int) -> int:
    if os.open not in os.supports_dir_fd:
        return os.open(path, flags | _BINARY, 0o666)
    place, name = os.path.split(path)
    folder = os.open(place or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.open(name, flags | _BINARY, 0o666, dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def atomic_path(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to; its file is flushed to the disk and replaces ``path`` at the end.

    A reader sees the old or the new content, never a part. On an error nothing is left behind.

    Args:
        path: The file to write or replace.
        alone: No other process writes this file now, so that what a killed one left can be overwritten.

    Raises:
        OSError: The file cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp" if alone else f".{path.name}.{os.urandom(4).hex()}.tmp")
    if alone:
        draft.unlink(missing_ok=True)  # it may be a link
    create_new(draft).close()
    try:
        yield draft
        sync_file(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk, where the platform can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file to the disk.

    Raises:
        OSError: It cannot be: the disk may be full.
    """
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def write_atomic(path: Path, content: str | bytes, *, alone: bool = False) -> None:
    """Write a file at once, text as UTF-8; see :func:`atomic_path`."""
    with atomic_path(path, alone=alone) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that the user named, whole or not at all; creates its folder.

    A link is followed, and what is no regular file, such as ``/dev/stdout``, is written to as it is.

    Raises:
        OSError: The file cannot be written.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        write_atomic(target, content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``folder`` at the end; on an error nothing is left behind.

    Raises:
        OSError: ``folder`` exists and is not empty, or cannot be written.
    """
    import tempfile

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        draft = Path(name, "draft")
        draft.mkdir()
        yield draft
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)


def file_sha256(path: Path, *, regular: bool = False) -> str:
    """SHA-256 of a file's content, hexadecimal; with ``regular`` of one that ``open_regular`` opens.

    Raises:
        OSError: The file cannot be read.
    """
    with open_regular(path) if regular else open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def format_bytes(size: float) -> str:
    """A size for messages: ``"2.3 GB"``, ``"348 MB"``, ``"7 bytes"``."""
    for unit, bytes_in_unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_in_unit:
            count = size / bytes_in_unit
            return f"{count:,.1f} {unit}" if count < 99.95 else f"{count:,.0f} {unit}"
    return f"{size:,.0f} bytes"


def counted(number: int, what: str) -> str:
    """A number of things for messages: ``"1 image"``, ``"2,000 images"``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


DISTRIBUTION = "llm2clip-retrieval"
"""What this package is called where it is installed from."""
_FALLBACK = 4 * 10**9
"""Bytes assumed where nothing is reported."""
_RECLAIMABLE = ("inactive_file", "active_file")
"""Page cache: counted as used by a cgroup, released on demand."""


class NoHomeError(OSError):
    """The user has no home folder, as services and containers may."""


def data_home() -> Path:
    """The folder of everything made without a path given: ``$LLM2CLIP_HOME``, else the platform's data folder.

    Raises:
        NoHomeError: The user has no home folder, and the variable is not set.
    """
    if told := os.environ.get("LLM2CLIP_HOME"):
        return Path(os.path.expanduser(told)).absolute()
    try:
        home = user_data_path("llm2clip", appauthor=False)
    except RuntimeError:  # old releases of platformdirs return the ~ instead
        home = Path("~")
    if home.parts[0].startswith("~"):
        raise NoHomeError(
            "this user has no home folder: set HOME or LLM2CLIP_HOME to a folder, or name every path"
        )
    return home


def models_home() -> Path:
    """The folder for models put there by hand: ``models`` in :func:`data_home`."""
    return data_home() / "models"


def package_version(name: str = DISTRIBUTION) -> str | None:
    """Version of an installed package, without importing it; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed."""
    found = {name: package_version(name) for name in names}
    return {"python": platform.python_version()} | {name: each for name, each in found.items() if each}


def free_memory(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be used without swapping; 4 GB where the system reports nothing."""
    reported = (_system_free(), _cgroup_free(cgroup_root), _cgroup_v1_free(cgroup_root / "memory"))
    return min((free for free in reported if free is not None), default=_FALLBACK)


def _system_free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_free(root: Path) -> int | None:
    return _limit_left(root / "memory.max", root / "memory.current", root / "memory.stat")


def _cgroup_v1_free(root: Path) -> int | None:
    return _limit_left(
        root / "memory.limit_in_bytes", root / "memory.usage_in_bytes", root / "memory.stat", prefix="total_"
    )


def _limit_left(limit: Path, usage: Path, details: Path, *, prefix: str = "") -> int | None:
    try:
        left = int(limit.read_text("ascii")) - int(usage.read_text("ascii"))
        counts = dict(line.split() for line in details.read_text("ascii").splitlines())
        return max(0, left + sum(int(counts.get(prefix + name, 0)) for name in _RECLAIMABLE))
    except (OSError, ValueError):  # no such group, or "max"
        return None
