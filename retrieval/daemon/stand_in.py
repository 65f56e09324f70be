"""Run something as another process of the same user would: its streams, environment and folder."""

from __future__ import annotations

import io
import os
import select
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


class HeldOutput(io.BytesIO):
    """Standard output that is kept, and otherwise answers as the stream that it stands for."""

    def fileno(self) -> int:
        """That of the real standard output."""
        return 1

    def isatty(self) -> bool:
        """Whether the real one is a terminal."""
        return os.isatty(1)


@contextmanager
def stand_in_for(request: Mapping[str, Any], streams: Sequence[int]) -> Iterator[HeldOutput]:
    """Inside, this process has the three standard streams, variables, folder and mask of another.

    What is written to standard output is held: a reader that waits holds up nobody else.
    """
    own = [os.dup(number) for number in range(3)]
    own_streams = sys.stdin, sys.stdout, sys.stderr
    variables, mask = dict(os.environ), os.umask(int(request["mask"]))
    try:
        os.chdir(request["folder"])
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        _set_variables(request["environment"])
        output = HeldOutput()
        (in_code, in_errors), (code, errors), (error_code, error_errors) = request["streams"]
        sys.stdin = open(0, encoding=in_code, errors=in_errors, closefd=False)  # noqa: SIM115
        sys.stdout = io.TextIOWrapper(output, encoding=code, errors=errors)
        sys.stderr = open(  # noqa: SIM115
            2, "w", encoding=error_code, errors=error_errors, closefd=False, buffering=1
        )
        yield output
    finally:
        sys.stdin, sys.stdout, sys.stderr = own_streams
        for number, stream in enumerate(own):
            os.dup2(stream, number)
            os.close(stream)
        _set_variables(variables)
        os.umask(mask)
        os.chdir("/")


def _set_variables(variables: Mapping[str, str]) -> None:
    if variables != dict(os.environ):
        os.environ.clear()
        os.environ.update(variables)
        if hasattr(time, "tzset"):
            time.tzset()


def redirect_to_nowhere(streams: Iterable[int]) -> None:
    """Let open files of these numbers read and write nothing from now on."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(nowhere, stream, inheritable=False)
    os.close(nowhere)


def reject_unlike(own: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Name of the first condition (``start_conditions``) that differs; None if none does."""
    for name in own:
        if name == "variables":
            mine, theirs = own[name], other.get(name, {})
            unlike = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
            if unlike:
                return str(unlike[0])
        elif own[name] != other.get(name):
            return name
    return None


def deliver(data: bytes, stream: int) -> int:
    """Write everything to an open file; the exit status of a program whose reader has left, else 0."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(stream, left[: 1 << 16]) :]
        except BlockingIOError:
            select.select([], [stream], [])
        except BrokenPipeError:
            return 1
    return 0
