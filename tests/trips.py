"""Counts the files of ours that a run enters, and the deepest stack of our functions.

Imports are left out: what counts is which files a reader has to open to follow what happens.
"""

import inspect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Trip:
    """What was entered while a function ran, in all threads."""

    files: set[str] = field(default_factory=set)
    """Paths below the root of the repository."""
    depth: int = 0
    """Most functions of ours that were active at once in one thread; lambdas and comprehensions do not count."""
    deepest: list[str] = field(default_factory=list)
    """Those functions, outermost first."""


def follow(function: Callable[[], object], areas: tuple[str, ...]) -> Trip:
    """Run a function and say where it went."""
    trip = Trip()
    prefixes = tuple(f"{ROOT}/{area}/" for area in areas)
    ours: dict[Any, str | None] = {}

    def place(code: Any) -> str | None:
        if code not in ours:
            path = str(Path(code.co_filename).resolve())
            called = code.co_flags & inspect.CO_OPTIMIZED  # neither a module nor the body of a class
            ours[code] = path.removeprefix(f"{ROOT}/") if called and path.startswith(prefixes) else None
        return ours[code]

    def hook(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (file := place(frame.f_code)) is None:
            return
        stack, at = [], frame
        while at is not None:
            if place(at.f_code) is not None and not at.f_code.co_name.startswith("<"):
                stack.append(f"{place(at.f_code)}:{at.f_code.co_name}")
            elif at.f_code.co_name == "<module>" and at.f_code.co_filename.startswith(prefixes):
                return  # while importing
            at = at.f_back  # type: ignore[assignment]
        trip.files.add(file)
        if len(stack) > trip.depth:
            trip.depth, trip.deepest = len(stack), stack[::-1]

    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return trip
