"""A disk that fails or loses power: every step by which this process writes a folder is seen, those of SQLite too.

Python's steps are seen in functions of ``os`` and in audit events. SQLite writes from C, through a table of functions
(its VFS), which is replaced by one that calls the old one; that needs the shared library that ``sqlite3`` is linked to.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FULL, _IOERR, _OK = 13, 10, 0
_CREATE, _MAIN = 0x4, 0x100 | 0x800
_POINTERS = 19
"""Largest number of functions of an open file of SQLite."""
_SECTOR = 512


class Watcher:
    """What is told of each step; only one watches at a time."""

    def begins(self, step: str, path: str) -> None:
        """A step is about to be done; an ``OSError`` makes it fail."""

    def ended(self, step: str, path: str, target: str) -> None:
        """A step was done."""


_watcher: Watcher | None = None
_lock = threading.RLock()


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell a watcher of the steps of this process."""
    global _watcher
    _install()
    _watcher = watcher
    try:
        yield
    finally:
        _watcher = None


def _told(step: str, path: str, act: Callable[[], Any], target: str = "") -> Any:
    with _lock:
        watcher = _watcher
        if watcher is None:
            return act()
        watcher.begins(step, path)
        done = act()
        watcher.ended(step, path, target)
        return done


# --- Python ---------------------------------------------------------------------------------------------------------

_installed = False


def _install() -> None:
    global _installed
    if _installed:
        return
    _installed = True
    for name in ("rename", "replace"):
        setattr(os, name, _renaming(getattr(os, name)))
    for name in ("unlink", "remove"):
        setattr(os, name, _unlinking(getattr(os, name)))
    synced = os.fsync
    os.fsync = lambda file: _told("sync", _path_of(file), lambda: synced(file))  # type: ignore[assignment]
    sys.addaudithook(_audited)
    _install_vfs()


def _renaming(rename: Callable[..., None]) -> Callable[..., None]:
    return lambda old, new, **at: _told(
        "rename", os.fspath(old), lambda: rename(old, new, **at), os.fspath(new)
    )


def _unlinking(unlink: Callable[..., None]) -> Callable[..., None]:
    return lambda path, **at: _told("unlink", os.fspath(path), lambda: unlink(path, **at))


def _path_of(file: Any) -> str:
    return os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")


def _audited(event: str, values: tuple[Any, ...]) -> None:
    if _watcher is None or event not in ("open", "os.mkdir") or isinstance(values[0], int):
        return
    if event == "os.mkdir" or (values[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        with _lock:
            _watcher.begins(event, os.fspath(values[0]))


# --- SQLite ---------------------------------------------------------------------------------------------------------

_Pointer = ctypes.c_void_p
_Open = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Pointer, _Pointer, ctypes.c_int, _Pointer)
_Delete = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Pointer, ctypes.c_int)
_Write = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Pointer, ctypes.c_int, ctypes.c_int64)
_Truncate = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.c_int64)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.c_int)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("longest", ctypes.c_int),
        ("next", _Pointer),
        ("name", ctypes.c_char_p),
        ("data", _Pointer),
        ("open", _Pointer),
        ("delete", _Pointer),
    )


_kept: list[Any] = []
"""What C holds pointers to."""
_names: dict[int, str] = {}
"""Path of each open file of SQLite, by its address."""
_tables: dict[int, Any] = {}
"""Our table of functions for each of SQLite's."""
_journals: set[int] = set()
"""New journals that were not flushed yet: the first time their folder is flushed too."""


def _sqlite_step(step: str, path: str, act: Callable[[], int], *, folder: bool = False) -> int:
    """A step of SQLite, whose functions return a code."""
    try:
        done: int = _told(step, path, act)
        if folder and done == _OK and _watcher is not None:
            with _lock:
                _watcher.ended("sync", os.path.dirname(path), "")
        return done
    except OSError as error:
        return _FULL if "space" in str(error) else _IOERR


def _install_vfs() -> None:
    import _sqlite3

    try:
        library = ctypes.CDLL("libsqlite3.so.0")
        with open("/proc/self/maps", encoding="utf-8") as maps:
            assert "libsqlite3" in maps.read()
        linked = Path(_sqlite3.__file__).read_bytes()
        assert b"libsqlite3.so" in linked
    except (OSError, AssertionError, AttributeError) as error:
        raise RuntimeError(
            "the sqlite3 of this Python has no shared library, so its writes cannot be seen"
        ) from error
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    vfs = library.sqlite3_vfs_find(None).contents
    real_open, real_delete = _Open(vfs.open), _Delete(vfs.delete)

    def opened(self: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        # The name goes on as the pointer that it is: SQLite keeps it.
        code = int(real_open(self, name, file, flags, out))
        if code == _OK and name and flags & _MAIN:
            _names[file] = os.fsdecode(ctypes.string_at(name))
            _wrap(file)
            if flags & _CREATE and _names[file].endswith("-journal"):
                _journals.add(file)
        return code

    def deleted(self: int, name: int, sync: int) -> int:
        path = os.fsdecode(ctypes.string_at(name))
        return _sqlite_step("unlink", path, lambda: int(real_delete(self, name, sync)), folder=bool(sync))

    _kept.extend([_Open(opened), _Delete(deleted), library])
    vfs.open, vfs.delete = (ctypes.cast(function, _Pointer).value for function in _kept[:2])


def _wrap(file: int) -> None:
    """Let an open file have our functions for writing."""
    place = ctypes.cast(file, ctypes.POINTER(ctypes.c_void_p))
    real = place[0]
    if real is None or any(ctypes.addressof(table) == real for table in _tables.values()):
        return
    if real not in _tables:
        # A version (padded to a pointer), then close, read, write, truncate, sync and others.
        table = (_Pointer * _POINTERS)()
        ctypes.memmove(table, real, ctypes.sizeof(table))
        write, truncate, sync = _Write(table[3]), _Truncate(table[4]), _Sync(table[5])

        def written(file: int, data: int, size: int, place: int) -> int:
            return _sqlite_step("write", _names[file], lambda: int(write(file, data, size, place)))

        def truncated(file: int, size: int) -> int:
            return _sqlite_step("truncate", _names[file], lambda: int(truncate(file, size)))

        def synced(file: int, flags: int) -> int:
            new = file in _journals
            _journals.discard(file)
            return _sqlite_step("sync", _names[file], lambda: int(sync(file, flags)), folder=new)

        for position, function in ((3, _Write(written)), (4, _Truncate(truncated)), (5, _Sync(synced))):
            _kept.append(function)
            table[position] = ctypes.cast(function, _Pointer).value
        _tables[real] = table
    place[0] = ctypes.addressof(_tables[real])


# --- power loss -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _File:
    durable: bytes = b""
    """What was flushed."""
    now: bytes = b""


@dataclass(frozen=True)
class Moment:
    """A moment at which the power may fail."""

    step: str
    """What was about to be done."""
    entries: Mapping[str, _File]
    """Names that were flushed."""
    pending: tuple[tuple[str, str, _File | None], ...]
    """Changes of names since: ``rename``, ``add`` or ``remove``, the name, and the file; a rename has both names."""
    contents: Mapping[_File, tuple[bytes, bytes]]
    """What was flushed of each file, and what was written."""

    def left(self, rng: random.Random) -> dict[str, bytes]:
        """What a disk may hold afterwards: any part of the changes since the last flush."""
        names = rng.choice(["none", "all", "first", "some"])
        data = rng.choice(["durable", "now", "zeros", "mixed", "mixed"])
        changes = {"none": (), "all": self.pending}.get(names)
        if changes is None:
            some = [change for change in self.pending if rng.random() < 0.5]
            changes = self.pending[: rng.randint(0, len(self.pending))] if names == "first" else tuple(some)
        entries = dict(self.entries)
        for kind, name, file in changes:
            if kind == "remove":
                entries.pop(name, None)
            elif file is not None:
                old, _, new = name.rpartition("\0")
                entries.pop(old, None)
                entries[new] = file
        return {name: self._content(file, data, rng) for name, file in entries.items()}

    def _content(self, file: _File, data: str, rng: random.Random) -> bytes:
        durable, now = self.contents.get(file, (file.durable, file.now))
        if data == "durable" or durable == now:
            return durable
        if data == "now":
            return now
        longer = durable[: len(now)].ljust(len(now), b"\0")
        if data == "zeros":
            return longer
        sectors = range(0, len(now), _SECTOR)
        mixed = b"".join((now if rng.random() < 0.5 else longer)[at : at + _SECTOR] for at in sectors)
        return mixed[: rng.choice([len(mixed), max(len(durable), rng.randint(0, len(mixed)))])]


@dataclass
class Recorder(Watcher):
    """Notes what could be left of a folder at every step, as a journalling file system may leave it."""

    folder: Path
    moments: list[Moment] = field(default_factory=list)
    _entries: dict[str, _File] = field(default_factory=dict)
    _durable: dict[str, _File] = field(default_factory=dict)
    _pending: list[tuple[str, str, _File | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._look()
        for file in self._entries.values():
            file.durable = file.now
        self._durable, self._pending = dict(self._entries), []

    def begins(self, step: str, path: str) -> None:
        """A step is about to be done."""
        self.note(f"{step} {os.path.basename(path)}")

    def note(self, step: str) -> Moment:
        """Add the present moment."""
        self._look()
        files = {*self._entries.values(), *self._durable.values()}
        contents = {file: (file.durable, file.now) for file in files}
        self.moments.append(Moment(step, dict(self._durable), tuple(self._pending), contents))
        return self.moments[-1]

    def ended(self, step: str, path: str, target: str) -> None:
        """A step was done."""
        if step == "sync" and path == str(self.folder):
            self._look()
            self._durable, self._pending = dict(self._entries), []
            return
        if os.path.dirname(path) != str(self.folder):
            return
        name, new = os.path.basename(path), os.path.basename(target)
        if step == "rename" and name in self._entries:
            self._entries[new] = self._entries.pop(name)
            self._pending.append(("rename", f"{name}\0{new}", self._entries[new]))
        elif step == "unlink" and self._entries.pop(name, None) is not None:
            self._pending.append(("remove", name, None))
        self._look()
        if step == "sync" and name in self._entries:
            self._entries[name].durable = self._entries[name].now

    def _look(self) -> None:
        """Notice new files, and what files hold now."""
        found = set[str]()
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            found = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        for name in found:
            if name not in self._entries:
                self._entries[name] = _File()
                self._pending.append(("add", name, self._entries[name]))
            with suppress(FileNotFoundError), open(self.folder / name, "rb") as file:
                self._entries[name].now = file.read()
        for name in self._entries.keys() - found:
            del self._entries[name]
            self._pending.append(("remove", name, None))


class Failing(Watcher):
    """Lets a step fail, or all from it on."""

    def __init__(self, at: int, error: OSError, *, lasting: bool = False) -> None:
        self.count, self._at, self._error, self._lasting = 0, at, error, lasting

    def begins(self, step: str, path: str) -> None:
        """Count a step."""
        self.count += 1
        removes = self._lasting and step == "unlink"  # of a full disk, files can still be deleted
        if (self.count == self._at or (self._lasting and self.count > self._at)) and not removes:
            raise self._error
