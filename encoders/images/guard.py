"""Decode costly images in processes of their own, which have a budget of time and memory and may crash.

What an image costs is bounded by its pixels for most files; those are decoded in the calling process. Others may take
minutes or gigabytes whatever their header says (scans of a JPEG, strips of a TIFF, tiles, run lengths). They go to a
few processes, started when the first such image comes. A process that exceeds its budget is ended, and the image is
refused. It is a plain child with two pipes, so this works the same with any start method of ``multiprocessing``, in
threads, and in scripts without a main guard.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, NamedTuple

from PIL import Image

from llm2clip.encoders.core.errors import ImageError

SECONDS = 6
"""Processor time for an image in a process of its own."""
MEMORY = 3 * 2**29
"""Bytes that such a process may use for an image, beside its file; enforced on Linux."""
_PATIENCE = 60.0 if os.name == "nt" else 600.0
"""Seconds on the clock; far more than ``SECONDS`` where those can be limited, as the machine may be busy."""
_REQUEST = struct.Struct("<QQ")
_REPLY = struct.Struct("<BQQ")
_DONE, _REFUSED, _SHORT, _FAILED = range(4)
_START = "import sys; sys.path[:] = {!r}; from llm2clip.encoders.images.guard import serve; serve()"
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class Decoded(NamedTuple):
    """An image out of its file."""

    image: Image.Image
    width: int
    """Of the original as shown, in pixels."""
    height: int
    """Likewise."""


def decode_apart(decode: Callable[[bytes], Decoded], content: bytes) -> Decoded:
    """Decode an image in a process of its own. Thread-safe.

    Args:
        decode: can be pickled; raises ``ImageError``; in RGB.
        content: an encoded image.

    Raises:
        ImageError: it cannot be decoded, or takes more time or memory than an image may.
        MemoryError: memory is short at present.
    """
    return _POOL.run(decode, content)


class _Worker:
    """A process that decodes one image after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _START.format(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | _ENVIRONMENT,
        )
        self._late = False
        self._whole = True  # whether the last reply was read to its end

    def run(self, decode: Callable[[bytes], Decoded], content: bytes) -> Decoded:
        """The decoded image; errors as in ``decode_apart``. ``alive`` says whether it can go on."""
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        job = pickle.dumps((decode, SECONDS, MEMORY))
        self._whole = False
        timer = threading.Timer(_PATIENCE, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            to.write(_REQUEST.pack(len(job), len(content)) + job)
            to.write(content)
            to.flush()
            status, about, size = _REPLY.unpack(_exactly(back, _REPLY.size))
            told = json.loads(_exactly(back, about))
            data = _exactly(back, size)
            self._whole = True
        except (OSError, EOFError) as error:
            raise self._why() from error
        finally:
            timer.cancel()
        return _result(status, told, data)

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _why(self) -> Exception:
        """What the end of the process means for its image."""
        code = self._process.wait()
        if (self._late and os.name == "nt") or code == -getattr(signal, "SIGXCPU", 0):
            return ImageError(f"takes more than {SECONDS} s to decode")
        if code >= 0 or -code in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGKILL", 0)):
            return MemoryError(f"its decoder was ended (status {code})")
        return ImageError("damaged file: its decoder crashed")

    @property
    def alive(self) -> bool:
        """Whether it takes another image."""
        return self._whole and self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()


class _Pool:
    """Processes that are started when they are needed, no more than memory and processors allow."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._most = 0

    def run(self, decode: Callable[[bytes], Decoded], content: bytes) -> Decoded:
        worker = self._take()
        try:
            return worker.run(decode, content)
        finally:
            self._give(worker)

    def _take(self) -> _Worker:
        with self._free:
            self._most = self._most or _most_workers()
            self._free.wait_for(lambda: self._idle or len(self._all) < self._most)
            if self._idle:
                return self._idle.pop()
            worker = _Worker()
            self._all.add(worker)
            return worker

    def _give(self, worker: _Worker) -> None:
        with self._free:
            if worker.alive:
                self._idle.append(worker)
            else:
                self._all.discard(worker)
                worker.close()
            self._free.notify()

    def close(self) -> None:
        """End all processes."""
        with self._free:
            for worker in self._all:
                worker.close()
            self._all.clear()
            self._idle.clear()


_POOL = _Pool()
atexit.register(lambda: _POOL.close())


def _forget() -> None:
    """After a fork the processes are the parent's."""
    global _POOL
    _POOL = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _most_workers() -> int:
    """A process for each processor, as long as all of them together need no more than half of the memory."""
    processors = os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return min(processors, 2)
    return max(1, min(processors, memory // 2 // MEMORY))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _result(status: int, told: dict[str, object], data: bytes) -> Decoded:
    if status == _REFUSED:
        raise ImageError(str(told["reason"]))
    if status == _SHORT:
        raise MemoryError(str(told["reason"]))
    if status == _FAILED:
        raise RuntimeError(str(told["reason"]))
    width, height, shown_width, shown_height = (int(str(told[name])) for name in ("w", "h", "sw", "sh"))
    return Decoded(Image.frombytes("RGB", (width, height), data), shown_width, shown_height)


def serve() -> None:
    """Decode what comes through standard input, until it ends: the main function of the processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once
    come, go = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries may print
    Image.init()
    limits = _Limits()
    with suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    while head := come.read(_REQUEST.size):
        job, size = _REQUEST.unpack(head)
        (decode, seconds, memory), content = pickle.loads(come.read(job)), come.read(size)
        limits.begin(seconds, 2 * size + memory)
        status, told, data = _attempt(decode, content, limits)
        limits.end()
        about = json.dumps(told).encode()
        go.write(_REPLY.pack(status, len(about), len(data)) + about)
        go.write(data)
        go.flush()


def _attempt(
    decode: Callable[[bytes], Decoded], content: bytes, limits: _Limits
) -> tuple[int, dict[str, object], bytes]:
    try:
        image, width, height = decode(content)
        data = image.tobytes()
    except ImageError as error:
        return _REFUSED, {"reason": str(error)}, b""
    except MemoryError:
        if limits.own:
            return _REFUSED, {"reason": "takes more than 1.5 GiB of memory to decode"}, b""
        return _SHORT, {"reason": "not enough memory to decode it at present"}, b""
    except Exception as error:
        return _FAILED, {"reason": f"{type(error).__name__}: {error}"}, b""
    return _DONE, {"w": image.width, "h": image.height, "sw": width, "sh": height}, data


class _Limits:
    """What the operating system holds this process to; nothing on Windows."""

    def __init__(self) -> None:
        self.own = False
        """Whether the limit of memory is ours: not one that was there, or none."""
        try:
            import resource
        except ImportError:  # Windows
            self._resource = None
            return
        self._resource = resource
        self._inherited = resource.getrlimit(resource.RLIMIT_AS)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._base = 0
        with suppress(OSError), open("/proc/self/statm") as file:
            self._base = int(file.read().split()[0]) * resource.getpagesize()

    def begin(self, seconds: int, memory: int) -> None:
        """Set the limits for an image."""
        if self._resource is None:
            return
        used = int(time.process_time()) + 1
        self._set(self._resource.RLIMIT_CPU, used + seconds)
        if self._base:
            self.own = self._set(self._resource.RLIMIT_AS, self._base + memory)

    def end(self) -> None:
        """Lift the limit of memory again: the reply has to be written."""
        if self._resource is not None and self._base:
            self._resource.setrlimit(self._resource.RLIMIT_AS, self._inherited)

    def _set(self, what: int, value: int) -> bool:
        """Set a limit unless a stricter one is there already; says whether it did."""
        assert self._resource is not None
        soft, hard = self._resource.getrlimit(what)
        none = self._resource.RLIM_INFINITY
        if what == self._resource.RLIMIT_AS:
            soft, hard = self._inherited
        if soft not in (none, value) and soft < value and what == self._resource.RLIMIT_AS:
            return False
        self._resource.setrlimit(what, (value if hard == none else min(value, hard), hard))
        return True
